"""Samples whose parts are read when first asked for: captions alone never touch a picture."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from trainer.api import BadSample, Sample, decode_picture
from trainer.data.shards import MAX_BYTES, PARTS, Shard, read_extent, read_extents

_PLACE = {part: 2 * place for place, part in enumerate(PARTS)}  # of an offset; its size follows
MAX_LETTERS = 300  # of a word
_LONG_WORD = re.compile(rf"\w{{{MAX_LETTERS + 1}}}|(?:[^\w\s]|_){{{MAX_LETTERS + 1}}}")
_CALLED = {"txt": "caption", "picture": "picture file"}


class StoredSample(Sample):
    """By img2dataset's naming: a picture, `txt`, and `json` with an `id` or `cls` for the label.

    Every part raises BadSample where it is asked for and cannot be used. min_side: pixels of a
    picture's shorter side that are enough.
    """

    min_side: int | None

    def read(self, part: str) -> bytes | None:
        """The bytes of one of PARTS, None where there is none."""
        raise NotImplementedError

    def has(self, part: str) -> bool:
        """Is there such a part, of whatever size?"""
        raise NotImplementedError

    # Kept by hand: until Python 3.12 cached_property takes a lock, which costs more than to read.
    @property
    def text(self) -> str | None:  # type: ignore[override]
        """A caption of nothing but spaces is none."""
        kept = self.__dict__
        if "text" not in kept:
            kept["text"] = _decoded(self.read("txt"))
        return kept["text"]

    @property
    def image_bytes(self) -> bytes | None:  # type: ignore[override]
        return self.read("picture")

    @cached_property
    def label(self) -> str | None:  # type: ignore[override]
        content = self.read("json")
        label = None if content is None else _id_of(content)
        return label if label is not None else _decoded(self.read("cls"))

    @cached_property
    def image(self) -> Tensor:
        data = self.image_bytes
        if data is None:
            raise BadSample("no picture")
        return decode_picture(data, self.min_side)


@dataclass(frozen=True)
class LocalRows:
    """What neighbours in a local shard have in common. rows: theirs in the shard."""

    shard: Shard
    path: str
    shown: str
    rows: range
    extents: list[int]  # of each row offset and size of each of PARTS, flat: no list a row
    min_side: int | None

    @staticmethod
    def of(shard: Shard, path: str, shown: str, rows: range, min_side: int | None) -> LocalRows:
        extents = shard.extents[rows.start : rows.stop : rows.step].ravel().tolist()
        return LocalRows(shard, path, shown, rows, extents, min_side)

    @cached_property
    def captions(self) -> list[bytes | None]:
        """Of each row; None of one that is absent or bad, for whom it is asked alone to tell.

        Together, when the first is asked for: whoever wants one wants its neighbours' too, and
        what a caption takes is then little more than to read it.
        """
        first, width = _PLACE["txt"], 2 * len(PARTS)
        offsets, sizes = self.extents[first::width], self.extents[first + 1 :: width]
        return read_extents(self.path, offsets, sizes, MAX_BYTES["txt"])


class LocalSample(StoredSample):
    """Its parts lie in a file on a disk: the `nth` of some rows."""

    def __init__(self, rows: LocalRows, nth: int):
        # Past the frozen dataclass, whose fields are properties here.
        kept = self.__dict__
        kept["_rows"], kept["_nth"] = rows, nth

    @property
    def key(self) -> str:  # type: ignore[override]
        rows = self.__dict__["_rows"]
        return rows.shard.keys[rows.rows[self.__dict__["_nth"]]]

    @property
    def shard(self) -> str:  # type: ignore[override]
        return self.__dict__["_rows"].shown

    @property
    def min_side(self) -> int | None:  # type: ignore[override]
        return self.__dict__["_rows"].min_side

    @property
    def place(self) -> tuple[str, int]:
        """The shard's path, and which of its rows this is."""
        rows = self.__dict__["_rows"]
        return rows.path, rows.rows[self.__dict__["_nth"]]

    def has(self, part: str) -> bool:
        place = 2 * len(PARTS) * self.__dict__["_nth"] + _PLACE[part]
        return self.__dict__["_rows"].extents[place] >= 0

    def read(self, part: str) -> bytes | None:
        kept = self.__dict__
        rows, nth = kept["_rows"], kept["_nth"]
        if part == "txt" and (caption := rows.captions[nth]) is not None:
            return caption
        place = 2 * len(PARTS) * nth + _PLACE[part]
        offset, size = rows.extents[place], rows.extents[place + 1]
        if offset < 0:
            return None
        if size > MAX_BYTES[part]:  # known before it is read
            raise too_large(part)
        return read_extent(rows.path, offset, size)


class ReadSample(StoredSample):
    """Its parts were read as they came by; one that was too large has its size instead."""

    def __init__(
        self, key: str, shard: str, min_side: int | None, parts: Mapping[str, bytes | int | None]
    ):
        self.__dict__ |= {"key": key, "shard": shard, "min_side": min_side, "parts": parts}

    def has(self, part: str) -> bool:
        return self.__dict__["parts"].get(part) is not None

    def read(self, part: str) -> bytes | None:
        content = self.__dict__["parts"].get(part)
        if content is None:
            return None
        if isinstance(content, int) or len(content) > MAX_BYTES[part]:
            raise too_large(part)
        return content


def too_large(part: str) -> BadSample:
    """Of a part with more bytes than one of its kind needs."""
    return BadSample(f"{_CALLED.get(part, part)} too large")


def _decoded(content: bytes | None) -> str | None:
    if content is None:
        return None
    try:
        text = content.decode().strip() or None
    except UnicodeDecodeError:
        raise BadSample("undecodable text") from None
    if text and has_long_word(text):
        raise too_large("txt")
    return text


def has_long_word(text: str) -> bool:
    """A tokenizer's time grows with the square of a word's letters, or of signs in a row."""
    if len(text) <= MAX_LETTERS:
        return False
    text = html.unescape(html.unescape(text)) if "&" in text else text  # as tokenizers do
    return _LONG_WORD.search(text) is not None


def _id_of(content: bytes) -> str | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # or nested deeper than Python goes
        raise BadSample("undecodable json") from None
    if not isinstance(found, dict):
        raise BadSample("json is no object")
    label = found.get("id")
    if not isinstance(label, str | int | None):
        raise BadSample("json has an id that is neither text nor a number")
    return None if label is None else _encodable(str(label))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write half a character
        raise BadSample("undecodable json") from None
    return text
