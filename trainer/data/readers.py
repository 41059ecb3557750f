"""One share of a shard to its samples, whatever the shard is and wherever it lies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from tarfile import BLOCKSIZE as BLOCK
from tarfile import HeaderError, TarInfo

from trainer.api import BadSample, Sample
from trainer.data.cache import cached
from trainer.data.captions import LINES, PARQUET, read_lines, read_parquet
from trainer.data.index import CHANGED, Forward, find_index, open_shard
from trainer.data.remote import Patience, RemoteFile
from trainer.data.samples import LocalRows, LocalSample, ReadSample
from trainer.data.shards import (
    CUT,
    MAX_BYTES,
    MAX_STREAMED_BYTES,
    PARTS,
    PICTURES,
    Entry,
    Shard,
    grouped,
    split_key,
    walk_headers,
)
from trainer.system.addresses import is_remote, shown

EMPTY = "shard without samples"
ROWS_AT_ONCE = 64  # of a share: their captions are read together


@dataclass(frozen=True)
class Share:
    """A `part` of `parts` of a shard: of a tar every `parts`-th sample, of captions a stretch."""

    url: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Reading:
    """How shards are read. min_side: pixels of a picture's shorter side that are enough."""

    with_pictures: bool = True
    min_side: int | None = None
    index: str | None = None  # folder of the indexes; else they are beside the shards
    cache: str | None = None  # folder for shards from elsewhere
    caption_column: str | None = None  # of Parquet files
    patience: Patience = Patience()


def read_share(share: Share, start: int, reading: Reading) -> Iterator[Sample | BadSample]:
    """A share's samples in order from the `start`-th on; a reason in the place of a bad one.

    Raises OSError and ValueError where the shard cannot be reached: the next may not, and the
    order must not depend on that.
    """
    url, part, parts = share.url, share.part, share.parts
    path: str | None = url
    if is_remote(url):
        path = cached(url, reading.cache, reading.patience) if reading.cache else None
    if path is not None:  # what is open is known by its path, wherever the process goes
        path = os.path.abspath(path)
    kind = url.partition("?")[0].lower()
    if kind.endswith((*PARQUET, *LINES)):
        if path is None:
            mend = "see to data.cache" if reading.cache else "set data.cache to a folder"
            raise ValueError(f"{shown(url)} is read from a disk only; {mend}")
        if kind.endswith(LINES):
            return read_lines(path, shown(url), part, parts, start)
        return read_parquet(path, shown(url), part, parts, start, reading.caption_column)
    if path is not None:
        shard = open_shard(path, url if is_remote(url) else None, reading.index)
        if start == 0 and (reason := _why_none(shard, part)):
            return iter([BadSample(reason, shown(url))])
        rows = range(part + start * parts, len(shard), parts)
        return _read_rows(shard, rows, path, shown(url), reading)
    index = find_index(url, reading.index)
    if index is None:
        return _read_stream(url, part + start * parts, parts, reading)
    if start == 0 and (reason := _why_none(index.shard, part)):
        return iter([BadSample(reason, shown(url))])
    rows = range(part + start * parts, len(index.shard), parts)
    return _read_rows_remote(index.shard, rows, url, index.size, reading)


def _why_none(shard: Shard, part: int) -> str | None:
    """Of a part for which an empty or damaged shard has no sample: one bad one in their place, or
    its lane had nothing to count. None where the shard has enough, or is whole and small.
    """
    if part < len(shard):
        return None
    return next(iter(shard.wrong.values()), None if len(shard) else EMPTY)


def read_shard(path: str) -> Iterator[Sample | BadSample]:
    """All samples of a local shard, their parts read when asked for; BadSample for a bad one."""
    return read_share(Share(path), 0, Reading())


def _read_rows(
    shard: Shard, rows: range, path: str, called: str, reading: Reading
) -> Iterator[Sample | BadSample]:
    """Nothing is read but what is asked for. called: what the shard is, in messages."""
    for first in range(0, len(rows), ROWS_AT_ONCE):
        own = rows[first : first + ROWS_AT_ONCE]
        some = LocalRows.of(shard, path, called, own, reading.min_side)
        if not shard.wrong:
            yield from map(LocalSample, repeat(some), range(len(some.rows)))
            continue
        for nth, row in enumerate(some.rows):
            if row in shard.wrong:
                yield BadSample(shard.wrong[row], called)
            else:
                yield LocalSample(some, nth)


def _read_rows_remote(
    shard: Shard, rows: range, url: str, size: int, reading: Reading
) -> Iterator[Sample | BadSample]:
    """From the first row's place on; the bytes of what is not wanted are skipped."""
    if not rows:
        return
    wanted = PARTS if reading.with_pictures else PARTS[:-1]
    start = min((int(e[0]) for e in shard.extents[rows.start] if e[0] >= 0), default=BLOCK)
    with RemoteFile(url, max(0, start - BLOCK), reading.patience) as file:
        is_changed = file.size is not None and file.size != size
        for row in rows:
            if is_changed or row in shard.wrong:
                yield BadSample(CHANGED if is_changed else shard.wrong[row], shown(url))
                continue
            places = zip(PARTS, shard.extents[row].tolist(), strict=True)
            parts: dict[str, bytes | int | None] = {}
            for offset, num_bytes, part in sorted((o, n, p) for p, (o, n) in places if o >= 0):
                if part in wanted:
                    if num_bytes > min(MAX_BYTES[part], MAX_STREAMED_BYTES):
                        parts[part] = num_bytes
                    elif offset - BLOCK < file.tell():  # it lies before: not by a writer of ours
                        continue
                    else:
                        file.skip(offset - BLOCK - file.tell())
                        is_changed |= not _is_header(file.read(BLOCK), num_bytes)
                        parts[part] = content = file.read(num_bytes)
                        is_changed |= len(content) != num_bytes  # of a size that nobody told
            if is_changed:
                yield BadSample(CHANGED, shown(url))
            else:
                yield ReadSample(shard.keys[row], shown(url), reading.min_side, parts)


def _is_header(block: bytes, num_bytes: int) -> bool:
    """Of an entry of so many bytes? Another shard of the same size has them elsewhere."""
    try:
        return TarInfo.frombuf(block, "utf-8", "surrogateescape").size == num_bytes
    except HeaderError:
        return False


def _read_stream(
    url: str, first: int, stride: int, reading: Reading
) -> Iterator[Sample | BadSample]:
    """Front to back, every header."""
    with RemoteFile(url, 0, reading.patience) as file:
        forward = Forward(file)
        files = _contents(walk_headers(forward, file.size), forward, reading.with_pictures)
        row, reason = -1, EMPTY
        for row, found in enumerate(grouped(files)):
            reason = found.reason if isinstance(found, BadSample) else reason
            if row < first or (row - first) % stride:
                continue
            if isinstance(found, BadSample):
                yield BadSample(found.reason, shown(url))
            else:
                yield ReadSample(found[0], shown(url), reading.min_side, found[1])
        if row < first < stride and (row < 0 or reason != EMPTY):  # as `_why_none`
            yield BadSample(reason, shown(url))


def _contents(
    entries: Iterable[Entry | BadSample], file: Forward, with_pictures: bool
) -> Iterator[tuple[Entry, bytes | int | None] | BadSample]:
    """Each file with its bytes; with its size where it is too large, None where nobody asks."""
    for entry in entries:
        if isinstance(entry, BadSample):
            yield entry
            continue
        extension = split_key(entry.name)[1]
        part = "picture" if extension in PICTURES else extension
        if part not in PARTS or (part == "picture" and not with_pictures):
            yield entry, None
        elif entry.size > min(MAX_BYTES[part], MAX_STREAMED_BYTES):
            yield entry, entry.size
        else:
            content = file.read(entry.size)
            if len(content) != entry.size:
                yield BadSample(CUT)  # its length was not known before
                return
            yield entry, content
