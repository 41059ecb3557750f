"""What is in a shard, found once and kept: `clip-unlearn index SHARDS`.

An index is a file of columns (numpy's npz) beside its shard, or in a folder of its own. Without
one a local shard's headers are walked whenever a process opens it; with one, a shard that changed
since is noticed and left out, and a remote one is read from the middle.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from glob import escape, glob
from hashlib import blake2b, sha256
from pathlib import Path, PurePosixPath
from tarfile import BLOCKSIZE as BLOCK
from urllib.parse import urlsplit

import numpy as np

from trainer.api import Tower
from trainer.data.remote import Patience, RemoteFile
from trainer.data.shards import MAX_BYTES, PARTS, Keys, Shard, scan, walk, walk_headers
from trainer.system.addresses import is_remote

FORMAT = 2
CHANGED = "shard changed since it was indexed"


@dataclass(frozen=True)
class Index:
    """A shard's columns, and what it was when they were made."""

    shard: Shard
    size: int  # bytes
    modified_ns: int  # 0 where it is remote
    probes: bytes  # a digest of headers and texts; empty where it is remote


def index_path(url: str, folder: str | None) -> str | None:
    return path_beside(url, folder, "index.npz")


def path_beside(url: str, folder: str | None, ending: str) -> str | None:
    """Where what is kept of a shard lies: beside it, or in the folder under its whole address."""
    if folder is None:
        return None if is_remote(url) else f"{url}.{ending}"
    address = url if is_remote(url) else os.path.abspath(url)
    name = PurePosixPath(urlsplit(url).path).name if is_remote(url) else os.path.basename(url)
    return os.path.join(folder, f"{name[-80:]}-{_digest_of(address)}.{ending}")


@lru_cache(maxsize=4096)  # of every row's shard it is asked
def _digest_of(address: str) -> str:
    return sha256(address.encode()).hexdigest()[:16]


def kept_of(url: str, folder: str | None) -> list[str]:
    """Its index and, see known_embeddings.py, its embeddings: those that there are, and what a
    process that was killed had written of one."""
    index = path_beside(url, folder, "index.npz")
    if index is None:
        return []
    stem = escape(index.removesuffix("index.npz"))
    whole = ["index.npz", *(f"{tower.value}-*.safetensors" for tower in Tower)]
    return [path for one in whole for end in ("", ".*.tmp") for path in glob(stem + one + end)]


def make_index(path: str) -> Index:
    """Of a local shard. Raises OSError."""
    before = os.stat(path)
    shard = scan(walk(path))
    if os.stat(path).st_size != before.st_size:
        raise OSError(f"{path} changes while it is read; index it when it is finished")
    return Index(shard, before.st_size, before.st_mtime_ns, probe(path, shard))


def make_remote_index(url: str, patience: Patience) -> Index:
    """Of a shard elsewhere: what lies between its headers is skipped where the server can.

    Raises OSError.
    """
    with RemoteFile(url, 0, patience) as file:
        shard = scan(walk_headers(Forward(file), file.size))
        size = file.size if file.size is not None else file.tell()
    return Index(shard, size, 0, b"")


class Forward:
    """A remote file as one that tarfile can walk: it only ever seeks forward."""

    def __init__(self, file: RemoteFile):
        self.read, self.tell, self._file = file.read, file.tell, file

    def seek(self, place: int) -> int:
        self._file.skip(place - self._file.tell())
        return place


def probe(path: str, shard: Shard) -> bytes:
    """A digest of all headers, and of all that is read but the pictures: a caption may change and
    its length stay, and who packs anew may give every file the same time."""
    digest = blake2b(digest_size=16)
    extents = shard.extents.reshape(-1, 2)
    is_text = np.tile([part != "picture" for part in PARTS], len(shard.extents))
    order = np.argsort(extents[:, 0], kind="stable")
    with open(path, "rb") as file:
        for (offset, size), has_text in zip(extents[order].tolist(), is_text[order].tolist()):
            if offset >= BLOCK:
                file.seek(offset - BLOCK)  # the header is the block before the data
                digest.update(file.read(BLOCK + has_text * min(size, MAX_BYTES["json"])))
    return digest.digest()


def save_index(index: Index, path: str) -> None:
    """Whole or not at all."""
    aside = f"{path}.{os.getpid()}.tmp"
    shard = index.shard
    try:
        Path(aside).unlink(missing_ok=True)
        with open(aside, "wb") as file:
            np.savez(
                file,
                format=np.int64(FORMAT),
                size=np.int64(index.size),
                modified_ns=np.int64(index.modified_ns),
                probes=np.frombuffer(index.probes, dtype=np.uint8),
                keys=np.frombuffer(shard.keys.joined, dtype=np.uint8),
                ends=shard.keys.ends,
                extents=shard.extents,
                wrong_rows=np.array(list(shard.wrong), dtype=np.int64),
                wrong_reasons=np.array(list(shard.wrong.values()), dtype=np.str_),
            )
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def load_index(path: str) -> Index:
    """Raises ValueError where it is none, or one that leads out of its shard."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("it is compressed")  # not by us, and may swell to any size
        with np.load(path, allow_pickle=False) as found:
            if int(found["format"]) != FORMAT:
                raise ValueError(f"it is of format {int(found['format'])}")
            wrong = zip(found["wrong_rows"].tolist(), found["wrong_reasons"].tolist(), strict=True)
            keys = Keys(found["keys"].tobytes(), found["ends"])
            shard = Shard(keys, found["extents"], dict(wrong))
            index = Index(
                shard, int(found["size"]), int(found["modified_ns"]), found["probes"].tobytes()
            )
        extents, ends = shard.extents, keys.ends
        if not extents.dtype == ends.dtype == np.int64:
            raise ValueError("its columns are of another type")
        if ends.ndim != 1 or extents.shape != (len(ends), len(PARTS), 2):
            raise ValueError("its columns are not of one length")
    except OSError:
        raise
    except Exception as error:  # numpy and zipfile have many, for whatever is in a file
        raise ValueError(
            f"{path} is no index of a shard ({error}); make it again with: clip-unlearn index"
        ) from None
    if len(extents) and int(extents.sum(-1).max()) > index.size:
        raise ValueError(f"{path} leads out of its shard; make it again with: clip-unlearn index")
    return index


def is_of(index: Index, path: str) -> bool:
    """Is the local shard, or copy of one, still what it was? Its time may be another."""
    now = os.stat(path)
    if now.st_size != index.size:
        return False
    if not index.probes or now.st_mtime_ns == index.modified_ns:
        return True
    return probe(path, index.shard) == index.probes


def find_index(url: str, folder: str | None) -> Index | None:
    path = index_path(url, folder)
    return load_index(path) if path is not None and os.path.exists(path) else None


@lru_cache(maxsize=64)  # every lane that shares a shard asks; 10,000 samples take about 1 MB
def open_shard(path: str, url: str | None = None, folder: str | None = None) -> Shard:
    """A local shard's samples, by its index if it has one. url: what it is a cached copy of.

    Of a shard that changed since all samples are wrong: their count, and the order of the others,
    stay what they were.
    """
    index = find_index(url or path, folder)
    if index is None:
        return scan(walk(path))
    if is_of(index, path):
        return index.shard
    shard = index.shard
    return Shard(shard.keys, shard.extents, dict.fromkeys(range(len(shard)), CHANGED))
