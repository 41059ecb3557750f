"""Local tar shards by position: what is in one, and any entry's bytes without reading the rest."""

from __future__ import annotations

import os
import tarfile
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from trainer.api import BadSample

Extent = tuple[int, int]  # offset of the first byte, number of bytes


@dataclass(frozen=True)
class Shard:
    """The samples of a tar in their order: (key, {extension: extent}) by webdataset's naming."""

    path: str
    samples: list[tuple[str, dict[str, Extent]]]


@lru_cache(maxsize=512)  # every lane that shares a shard asks
def open_shard(path: str) -> Shard:
    """Walk a tar's headers, not its bytes. What stands before a damage is used, with a warning."""
    samples: dict[str, dict[str, Extent]] = defaultdict(dict)
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if not entry.isreg() or not _is_inside(entry.name):
                    continue
                if entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                key, extension = split_key(entry.name)
                samples[key][extension] = (entry.offset_data, entry.size)
            if tar.offset >= size:
                raise tarfile.ReadError("no end mark, it was cut off")
    except tarfile.TarError as error:
        warnings.warn(f"{path}: {error}; {len(samples)} samples before it are used", stacklevel=2)
    return Shard(path, list(samples.items()))


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def split_key(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the base name."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def read_extent(path: str, extent: Extent) -> bytes:
    """The bytes at (offset, size). Raises BadSample where the file has become shorter."""
    offset, size = extent
    data = os.pread(_descriptor(path, os.getpid()), size, offset)
    if len(data) != size:
        raise BadSample("shard is shorter than it was")
    return data


@lru_cache(maxsize=1024)
def _descriptor(path: str, process: int) -> int:  # a forked worker opens its own
    return os.open(path, os.O_RDONLY)
