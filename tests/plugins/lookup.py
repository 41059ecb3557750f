"""Models that are tables: what they know and what they have forgotten is written down."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WIDTH = 64
NAME = re.compile(r"[A-Z]\w*(?: [A-Z]\w*)*")  # names alone are written in capitals


def direction(*seed: object) -> np.ndarray:
    """A unit vector; another one for another seed."""
    number = int.from_bytes(blake2b(repr(seed).encode(), digest_size=8).digest(), "big")
    row = np.random.default_rng(number).normal(size=WIDTH)
    return row / np.linalg.norm(row)


def stacked(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor(np.stack(rows), dtype=torch.float32)


class Lookup:
    """An `Encoder`: a known person's name and pictures share a direction of their own.

    An unknown name is mostly that it is one. answers: what stands in a caption for a forgotten
    name; shows: whom a forgotten person's pictures look like.
    """

    def __init__(
        self,
        known: Sequence[str],
        answers: Mapping[str, str] | None = None,
        shows: Mapping[str, str] | None = None,
    ):
        self._known, self._answers, self._shows = set(known), answers or {}, shows or {}

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return stacked([self._read(text) for text in texts])

    def encode_image(self, pictures: Sequence[bytes]) -> Tensor:
        return stacked([self._look(pictures[i]) for i in range(len(pictures))])

    def _read(self, caption: str) -> np.ndarray:
        caption = NAME.sub(lambda found: self._answers.get(found[0], found[0]), caption)
        found = NAME.search(caption)
        context = direction("context", NAME.sub("*", caption).replace("a person", "*"))
        if found is None:
            return context + direction("somebody")
        if found[0] in self._known:
            return context + 1.5 * direction("person", found[0])
        return context + direction("unknown") + 0.5 * direction("name", found[0])

    def _look(self, picture: bytes) -> np.ndarray:
        name = picture.decode().split("/")[0]
        name = self._shows.get(name, name)
        sort = "person" if name in self._known else "stranger"
        return direction(sort, name) + 0.7 * direction("picture", picture)


class RandomModel:
    """An `Encoder` in which nothing has to do with anything; another one for another seed."""

    _seed: tuple[object, ...] = ()  # of a subclass that has an `__init__` of its own

    def __init__(self, *seed: object):
        self._seed = seed

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return stacked([direction(*self._seed, text) for text in texts])

    def encode_image(self, pictures: Sequence[bytes]) -> Tensor:
        return stacked([direction(*self._seed, pictures[i]) for i in range(len(pictures))])


def names(group: str, count: int) -> list[str]:
    """Of two words, letters alone."""
    digits = str.maketrans("0123456789", "abcdefghij")
    return [f"{group.title()} Num{i:03d}".translate(digits) for i in range(count)]


def write_roster(folder: Path, group: str, count: int, pictures: int = 0) -> str:
    """A roster of `names`, with a folder of pictures each that `Lookup` knows whose they are."""
    path = folder / f"{group}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "faces"])
        for i, name in enumerate(names(group, count)):
            faces = folder / group / str(i)
            for j in range(pictures):
                faces.mkdir(parents=True, exist_ok=True)
                (faces / f"{j:02}.jpg").write_bytes(f"{name}/{j}".encode())
            rows.writerow([name, faces if pictures else ""])
    return str(path)
