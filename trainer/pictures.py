"""Pictures of people, any of them at once: from a folder each, or from shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from trainer.api import BadSample
from trainer.roster import Identity
from trainer.shards import open_shard, read_extent
from trainer.streams import PICTURES, expand, is_remote

WHOLE_FILE = -1


class Pictures:
    """By person, then by picture. Compact: people times pictures may be millions."""

    def __init__(self, people: Sequence[Sequence[tuple[str, int, int]]]):
        """people: of each the (path, offset, size) of every picture."""
        paths = {path: None for person in people for path, _, _ in person}
        number = {path: i for i, path in enumerate(paths)}
        self._paths = list(paths)
        self._starts = np.cumsum([0] + [len(person) for person in people])
        places = [(number[path], offset, size) for person in people for path, offset, size in person]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)

    @staticmethod
    def of(people: Sequence[Identity]) -> Pictures:
        """Of a roster's people, as their `faces` say. Raises ValueError naming pseudonyms."""
        found = [_find(person) for person in people]
        without = [person.pseudonym for person, own in zip(people, found) if not own]
        if without:
            raise ValueError(
                f"{len(without)} of {len(people)} people have no picture: {', '.join(without[:5])}"
                f"{' ...' if len(without) > 5 else ''}; name a folder or shards in `faces`, "
                "and in shards begin each key with `<id>/`"
            )
        return Pictures(found)

    @staticmethod
    def of_shards(patterns: Sequence[str]) -> Pictures:
        """Of people without a roster: a key's folder is a person, else each picture is one."""
        people: dict[str, list[tuple[str, int, int]]] = {}
        for path in _local(patterns):
            for key, place in _shard_pictures(path):
                people.setdefault(os.path.dirname(key) or f"{path}/{key}", []).append(place)
        if not people:
            raise ValueError(f"no picture in {', '.join(patterns)}")
        return Pictures([people[name] for name in sorted(people)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def count(self, person: int) -> int:
        return int(self._starts[person + 1] - self._starts[person])

    def read(self, person: int, picture: int) -> bytes:
        """The encoded picture. Raises BadSample where the file has changed."""
        if not 0 <= picture < self.count(person):
            raise IndexError(picture)
        path, offset, size = self._places[self._starts[person] + picture].tolist()
        if size != WHOLE_FILE:
            return read_extent(self._paths[path], (offset, size))
        try:
            return Path(self._paths[path]).read_bytes()
        except OSError:
            raise BadSample("picture is gone") from None


def _find(person: Identity) -> list[tuple[str, int, int]]:
    if person.faces is None:
        return []
    if os.path.isdir(person.faces):
        files = sorted(Path(person.faces).iterdir())
        return [(str(f), 0, WHOLE_FILE) for f in files if f.suffix.lower().lstrip(".") in PICTURES]
    try:
        by_folder = _by_folder(person.faces)
    except FileNotFoundError:
        # Not the path: a folder's name may be the person's.
        raise FileNotFoundError(f"the faces of {person.pseudonym} are not there") from None
    if by_folder.keys() == {""}:
        return by_folder[""]
    return by_folder.get(person.id, [])


@lru_cache(maxsize=64)  # thousands of people name the same shards
def _by_folder(pattern: str) -> dict[str, list[tuple[str, int, int]]]:
    found: dict[str, list[tuple[str, int, int]]] = {}
    for path in _local([pattern]):
        for key, place in _shard_pictures(path):
            found.setdefault(os.path.dirname(key), []).append(place)
    return found


def _local(patterns: Sequence[str]) -> list[str]:
    paths = expand(patterns)
    remote = [path for path in paths if is_remote(path)]
    if remote:
        raise ValueError(f"pictures of people are read at random: download {remote[0]} first")
    return paths


def _shard_pictures(path: str) -> list[tuple[str, tuple[str, int, int]]]:
    return [
        (key, (path, *extent))
        for key, extents in open_shard(path).samples
        for extension, extent in extents.items()
        if extension in PICTURES
    ]
