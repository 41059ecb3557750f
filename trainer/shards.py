"""Local tar shards by position: what is in one, and any entry's bytes without reading the rest."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from trainer.api import BadSample

PICTURES = ("jpg", "jpeg", "png", "webp", "gif")  # extensions; the first that a sample has counts
MAX_OPEN_FILES = 128  # a process; many systems allow 1024
MAX_HEADER_BYTES = 65_536  # of a long name or of pax records; a path has 4,096 at most
Extent = tuple[int, int]  # offset of the first byte, number of bytes


class Entry(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int  # bytes


def walk(path: str, shown: str | None = None) -> Iterator[Entry]:
    """The files of a tar in their order, by its headers alone. Raises OSError where it is gone.

    Whatever the bytes are, they end: of a damaged or cut tar what stands before the damage is
    given, and one warning tells what was left out. shown: what that calls the shard, else `path`.
    """
    wrong: list[str] = []
    num_files = num_outside = 0
    size = os.path.getsize(path)
    with _Headers(path) as file:
        try:
            for entry in _headers(file):
                if entry.issparse() or not entry.isreg():
                    continue
                if not entry.offset_data <= entry.offset_data + entry.size <= size:
                    raise tarfile.ReadError("it ends in the middle of an entry")
                name = entry.name.removeprefix("./")
                if name.startswith("/") or ".." in name.split("/"):
                    num_outside += 1
                    continue
                num_files += 1
                yield Entry(name, entry.offset_data, entry.size)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            # A ValueError quotes the header, and with it perhaps a name.
            what = error if isinstance(error, tarfile.TarError) else "not a header"
            wrong.append(f"cut off or damaged ({what}), the {num_files} files before that are used")
    if num_outside:
        wrong.append(f"{num_outside} entries are ignored, their paths lead out of it")
    if wrong:
        warnings.warn(f"{shown or path}: a shard is not whole: {'; '.join(wrong)}", stacklevel=2)


class _Headers(io.FileIO):
    """A tar without long reads: a damaged header may ask for all the memory there is."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return super().read(size) or b""


def _headers(file: _Headers) -> Iterator[tarfile.TarInfo]:
    """All entries. Raises TarError where the tar does not end as one should."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        reached = -1
        while entry := tar.next():
            vars(tar)["members"].clear()  # it would keep them all
            if tar.offset <= reached:
                raise tarfile.ReadError("a header leads back")
            reached = tar.offset
            yield entry
        # A damaged header ends the walk without a word, where zeros should end it.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset}")


@dataclass(frozen=True)
class Shard:
    """The samples of a tar in their order: (key, {extension: extent}) by webdataset's naming."""

    path: str
    samples: list[tuple[str, dict[str, Extent]]]

    @staticmethod
    def picture(extents: dict[str, Extent]) -> Extent | None:
        """Where a sample's picture lies, if it has one."""
        return next((extents[name] for name in PICTURES if name in extents), None)


@lru_cache(maxsize=64)  # every lane that shares a shard asks; 10,000 samples take about 7 MB
def open_shard(path: str) -> Shard:
    """What `walk` finds, by sample; hidden files, and those without an extension, are of none."""
    samples: dict[str, dict[str, Extent]] = defaultdict(dict)
    for name, offset, size in walk(path):
        key, extension = split_key(name)
        if extension and not key.endswith("/") and key:
            samples[key][sys.intern(extension)] = (offset, size)
    return Shard(path, list(samples.items()))


def split_key(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def read_extent(path: str, extent: Extent) -> bytes:
    """The bytes at (offset, size). Raises BadSample where they can be read no longer."""
    offset, size = extent
    try:
        file = _opened(path)  # held till it is read: else the cache might close it
        data = os.pread(file.descriptor, size, offset)
    except OSError as error:  # its own words tell the path, which may be a person's name
        raise BadSample(f"shard cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise BadSample("shard is shorter than it was")
    return data


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
