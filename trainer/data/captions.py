"""Captions without pictures: text files, one a line, and columns of Parquet files.

A part of a text file is what starts in its stretch of bytes, so nobody has to count the lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

from trainer.api import BadSample, Sample
from trainer.data.samples import has_long_word
from trainer.data.shards import MAX_BYTES

COLUMNS = ("caption", "TEXT", "text")  # as img2dataset, LAION and DataComp call it
PARQUET, LINES = (".parquet", ".pq"), (".txt",)
ROWS_AT_ONCE = 512


def read_lines(path: str, shown: str, part: int, parts: int, start: int) -> Iterator:
    """Sample or BadSample for each line that begins in the part, from the `start`-th on.

    Raises OSError where the file is gone.
    """
    name = _name_of(shown)
    longest = MAX_BYTES["txt"]
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first, end = size * part // parts, size * (part + 1) // parts
        if first:  # the line that this byte is in began before, unless a line ends right here
            file.seek(first - 1)
            _to_next_line(file)
        for nth in range(size + 1):
            place = file.tell()
            if place >= end:
                return
            line = file.readline(longest + 2)
            is_long = not line.endswith(b"\n") and len(line) > longest
            if is_long:
                _to_next_line(file)
            if nth < start:
                continue
            if is_long:
                yield BadSample("caption too large", shown)
            else:
                yield _sample(f"{name}@{place}", shown, line)


def _name_of(shown: str) -> str:
    """The same for the file, a cached copy, and the address under any signature."""
    return os.path.basename(shown.partition("?")[0])


def _to_next_line(file) -> None:
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def _sample(key: str, shown: str, line: bytes) -> Sample | BadSample:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return BadSample("undecodable text", shown)
    if has_long_word(text):
        return BadSample("caption too large", shown)
    return Sample(key, text, shard=shown) if text else BadSample("no caption", shown)


def read_parquet(
    path: str, shown: str, part: int, parts: int, start: int, column: str | None
) -> Iterator:
    """Sample or BadSample for each row of the part, from the `start`-th on.

    column: of the captions; else the first of COLUMNS that there is. Raises ValueError where
    there is none, OSError where the file cannot be read. One that is none gives one BadSample.
    """
    import pyarrow
    from pyarrow import parquet

    name = _name_of(shown)
    try:
        # A little at a time: the lanes have many files open, each in another place.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            column = _column(shown, file.schema_arrow.names, column)
            num_rows = file.metadata.num_rows
            first, end = num_rows * part // parts, num_rows * (part + 1) // parts
            row = first + start
            for number, text in _rows(file, column, row, end):
                yield _row_sample(f"{name}@{number}", shown, text)
    # Of a damaged file pyarrow passes on whatever its parts could not make sense of.
    except (pyarrow.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own: it cannot be read now, whatever is in it
        yield BadSample("parquet file cut off or damaged", shown)


def _column(shown: str, names: list[str], wanted: str | None) -> str:
    found = [name for name in ((wanted,) if wanted else COLUMNS) if name in names]
    if not found:
        raise ValueError(
            f"{shown} has no column {wanted or ' or '.join(COLUMNS)}; "
            f"set data.caption_column to one of its own: {', '.join(names[:20])}"
        )
    return found[0]


def _rows(file, column: str, first: int, end: int) -> Iterator[tuple[int, object]]:
    start = 0
    for group in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if stop > first and start < end:
            batches = file.iter_batches(ROWS_AT_ONCE, [group], [column], use_threads=False)
            number = start
            for batch in batches:
                if number + len(batch) > first and number < end:
                    texts = _texts(batch.column(0))
                    skipped = max(0, first - number)
                    for i, text in enumerate(islice(texts, skipped, end - number), skipped):
                        yield number + i, text
                number += len(batch)
                if number >= end:
                    return
        start = stop


def _texts(column) -> list[object]:
    """None and what is no text as they are; bytes in the place of what is no UTF-8, which Parquet
    does not check."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text(one) for one in column]


def _text(scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""


def _row_sample(key: str, shown: str, text: object) -> Sample | BadSample:
    if not isinstance(text, str):
        return BadSample("no caption" if text is None else "caption is no text", shown)
    if len(text) > MAX_BYTES["txt"] or has_long_word(text):
        return BadSample("caption too large", shown)
    text = text.strip()
    return Sample(key, text, shard=shown) if text else BadSample("no caption", shown)
