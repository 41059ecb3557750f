"""Tar shards by position: what is in one, and any part's bytes without reading the rest."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from trainer.api import BadSample

PICTURES = ("jpg", "jpeg", "png", "webp", "gif")  # extensions; the first that a sample has counts
PARTS = ("txt", "json", "cls", "picture")  # what is read of a sample, the columns of a shard
MAX_BYTES = {"txt": 20_000, "json": 1_000_000, "cls": 1_000, "picture": 200_000_000}
MAX_STREAMED_BYTES = 20_000_000  # of a part that is read as it comes by: a hundred wait together
MAX_OPEN_FILES = 128  # a process; many systems allow 1024
MAX_HEADER_BYTES = 65_536  # of a long name or of pax records; a path has 4,096 at most
MANY_DIGITS = re.compile(rb"\d{100}")  # a length has five, a time of modification twenty
CUT = "shard cut off or damaged"
Extent = tuple[int, int]  # offset of the first byte, number of bytes
T = TypeVar("T")


class Entry(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int  # bytes


class Readable(Protocol):
    """A binary file that is sought forward only."""

    def read(self, size: int, /) -> bytes | None: ...

    def seek(self, place: int, /) -> int: ...

    def tell(self) -> int: ...


def walk(path: str) -> Iterator[Entry | BadSample]:
    """The files of a local tar in their order, by its headers alone.

    Whatever the bytes are, they end: in the place of what cannot be used stands the reason.
    Raises OSError where the file is gone.
    """
    with open(path, "rb", buffering=0) as file:
        yield from walk_headers(file, os.path.getsize(path))


def walk_headers(file: Readable, size: int | None) -> Iterator[Entry | BadSample]:
    """The same of any file. size: bytes, where it is known."""
    headers = _Headers(file)
    try:
        with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
            while entry := tar.next():
                vars(tar)["members"].clear()  # it would keep them all
                if tar.offset < file.tell():
                    raise tarfile.ReadError("a header leads back")
                if entry.issparse() or not entry.isreg():
                    continue
                end = entry.offset_data + entry.size
                # Who reads it must not pass the next: a global pax header gives it a size, too.
                if not entry.offset_data <= end <= tar.offset:
                    raise tarfile.ReadError("an entry leads out of its place")
                if size is not None and end > size:
                    raise tarfile.ReadError("it ends in the middle of an entry")
                name = entry.name.removeprefix("./")
                if name.startswith("/") or ".." in name.split("/"):
                    yield BadSample("path leads out of the shard")
                else:
                    yield Entry(name, entry.offset_data, entry.size)
            # A damaged header ends the walk without a word, where zeros should end it.
            if headers.last != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):
        # Without their words: a ValueError quotes the header, and with it perhaps a name.
        yield BadSample(CUT)


class _Headers:
    """A file without long reads: a damaged header may ask for all the memory there is."""

    def __init__(self, file: Readable):
        self._file = file
        self.last = b""  # what was read last
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        self.last = self._file.read(size) or b""
        # Up to 3.12.5 Python searches pax records in the square of their digits (CVE-2024-6232).
        if size > tarfile.BLOCKSIZE and MANY_DIGITS.search(self.last):
            raise tarfile.ReadError("a header with a number of a hundred digits")
        return self.last


def split_key(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def grouped(
    files: Iterable[tuple[Entry, T] | BadSample],
) -> Iterator[tuple[str, dict[str, T]] | BadSample]:
    """Files to samples: (key, {part: what came with it}), neighbours of one key together.

    Hidden files and those without an extension are of none. A key that comes back later, or one
    that has the same part twice, is a duplicate.
    """
    finished: set[str] = set()
    key, extensions, parts, is_duplicate = "", set[str](), dict[str, T](), False

    def sample() -> Iterator[tuple[str, dict[str, T]] | BadSample]:
        if is_duplicate or key in finished:
            yield BadSample("duplicate key")
        elif parts:
            yield key, parts
        finished.add(key)

    for file in files:
        if isinstance(file, BadSample):
            yield file
            continue
        entry, content = file
        own_key, extension = split_key(entry.name)
        if not extension or not own_key or own_key.endswith("/"):
            continue
        if own_key != key:
            if key:
                yield from sample()
            key, extensions, parts, is_duplicate = own_key, set(), {}, False
        is_duplicate = is_duplicate or extension in extensions
        extensions.add(extension)
        if extension not in PICTURES:
            if extension in PARTS:
                parts[extension] = content
        elif extensions.isdisjoint(PICTURES[: PICTURES.index(extension)]):
            parts["picture"] = content
    if key:
        yield from sample()


@dataclass(frozen=True)
class Shard:
    """The samples of a tar in their order, as columns: 100 bytes a sample.

    extents: (n, 4, 2) int64, offset and size of each of PARTS, -1 where there is none. wrong: the
    reason why the sample in that row cannot be used.
    """

    keys: Keys
    extents: np.ndarray
    wrong: dict[int, str]

    def __len__(self) -> int:
        return len(self.keys)


class Keys:
    """Strings as one: a list of them takes four times as much."""

    def __init__(self, joined: bytes, ends: np.ndarray):
        self.joined, self.ends = joined, ends

    @staticmethod
    def of(keys: list[str]) -> Keys:
        encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
        return Keys(b"".join(encoded), np.cumsum([len(one) for one in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.joined[start : int(self.ends[i])].decode("utf-8", "surrogateescape")


def scan(files: Iterable[Entry | BadSample]) -> Shard:
    """What `walk` finds, by sample."""
    keys: list[str] = []
    rows: list[list[Extent]] = []
    wrong: dict[int, str] = {}
    absent = (-1, -1)
    marked = (one if isinstance(one, BadSample) else (one, one[1:]) for one in files)
    for found in grouped(marked):
        if isinstance(found, BadSample):
            wrong[len(keys)] = found.reason
            keys.append("")
            rows.append([absent] * len(PARTS))
        else:
            key, parts = found
            keys.append(key)
            rows.append([parts.get(part, absent) for part in PARTS])
    extents = np.array(rows, dtype=np.int64).reshape(-1, len(PARTS), 2)
    return Shard(Keys.of(keys), extents, wrong)


def read_extent(path: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on. Raises BadSample where they can be read no longer."""
    try:
        file = _opened(path)  # held till it is read: else the cache might close it
        data = os.pread(file.descriptor, size, offset)
    except OSError as error:  # its own words tell the path, which may be a person's name
        raise BadSample(f"shard cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise BadSample("shard is shorter than it was")
    return data


def read_extents(
    path: str, offsets: list[int], sizes: list[int], max_bytes: int
) -> list[bytes | None]:
    """Of each its bytes; None where there are none, or more than `max_bytes`, or all where one of
    them cannot be read: `read_extent` tells of which and why."""
    try:
        file = _opened(path)
        descriptor, pread = file.descriptor, os.pread
        found = [
            pread(descriptor, size, offset) if offset >= 0 and size <= max_bytes else None
            for offset, size in zip(offsets, sizes)
        ]
    except OSError:
        return [None] * len(sizes)
    return [None if data is None or len(data) != size else data for data, size in zip(found, sizes)]


class _OpenFile:
    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if "descriptor" in self.__dict__:  # not where it could not be opened
            os.close(self.descriptor)


# A forked worker reads by its copies: reading at a place moves nothing that they share.
@lru_cache(maxsize=MAX_OPEN_FILES)
def _opened(path: str) -> _OpenFile:
    return _OpenFile(path)
