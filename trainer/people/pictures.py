"""Pictures of people, any of them at once: from a folder each, or from shards."""

from __future__ import annotations

import os
import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from trainer.api import BadSample, Encoder
from trainer.data.samples import LocalSample
from trainer.data.shards import PICTURES, read_extent, walk
from trainer.data.streams import expand
from trainer.people.roster import Identity
from trainer.system.addresses import is_remote


class Pictures:
    """By person, then by picture. Compact: 20 bytes a picture, for there may be millions."""

    def __init__(self, rows: _Rows, num_people: int):
        owners = np.array(rows.owners)
        order = np.argsort(owners, kind="stable")  # a person's pictures stay in their order
        self._starts = np.cumsum([0, *np.bincount(owners, minlength=num_people)])
        self._sources = np.array(rows.sources)[order]
        self._places = np.array(rows.places)[order]
        self._sizes = np.array(rows.sizes)[order]
        # What is open is known by its path, wherever the process goes.
        self._paths = [os.path.abspath(path) for path in rows.paths]
        self._names = list(rows.names)

    @staticmethod
    def of(identities: Sequence[Identity]) -> Pictures:
        """Of a roster's people, as their `faces` say: a folder each, or shards.

        In a shard theirs are the pictures whose folder is their `id`; or all, where it has no
        folder. Raises ValueError and FileNotFoundError, which tell a path only where several
        people share it: one's own is likely to be their name.
        """
        people: dict[str, dict[str, int]] = defaultdict(dict)  # faces -> {id: place in the roster}
        for i, identity in enumerate(identities):
            if identity.faces is not None:
                people[identity.faces][identity.id] = i
        named_by: dict[str, list[str]] = defaultdict(list)  # path -> all `faces` that name it
        for faces, owners in people.items():
            for path in _paths_of(faces, _shown(faces, owners, identities)):
                named_by[path].append(faces)
        rows = _Rows()
        for path, patterns in named_by.items():
            owners = people[patterns[0]]
            if len(patterns) > 1:
                owners = {one: i for faces in patterns for one, i in people[faces].items()}
            entries = _entries_of(path, _shown(path, owners, identities))
            rows.add(path, _owned(entries, owners, path))
        pictures = Pictures(rows, len(identities))
        _refuse_people_without(pictures, identities)
        return pictures

    @staticmethod
    def of_shards(patterns: Sequence[str]) -> Pictures:
        """Of people without a roster, by folder and in its order: one in the shards is a person.

        A picture without a folder there is a person of its own, and so is each of the pictures in
        a folder on disk, or of those that a pattern names.
        """
        numbers: dict[tuple, int] = {}
        rows = _Rows()
        for path in dict.fromkeys(path for one in patterns for path in _paths_of(one, one)):
            keys = [
                ((entry.folder,) if entry.folder else ("", path, entry.place), entry)
                for entry in _entries_of(path, path)
            ]
            rows.add(path, [(numbers.setdefault(key, len(numbers)), entry) for key, entry in keys])
        if not numbers:
            raise ValueError(f"no picture in {', '.join(patterns)}")
        ranks = np.empty(len(numbers), dtype=np.int32)
        ranks[[numbers[key] for key in sorted(numbers)]] = np.arange(len(numbers))
        rows.owners = array("i", ranks[np.array(rows.owners)].tolist())
        return Pictures(rows, len(numbers))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def count(self, person: int) -> int:
        return int(self._starts[person + 1] - self._starts[person])

    def read(self, person: int, picture: int) -> bytes:
        """The encoded picture. Raises BadSample where it is gone or no longer as long."""
        if not 0 <= picture < self.count(person):
            raise IndexError(f"picture {picture} of {self.count(person)}")
        row = self._starts[person] + picture
        path, place, size = self._paths[self._sources[row]], self._places[row], self._sizes[row]
        if place >= 0:
            return read_extent(path, int(place), int(size))
        try:
            with open(os.path.join(path, self._names[~place]), "rb") as file:
                data = file.read(size + 1)
        except OSError as error:  # its own words tell the path
            raise BadSample(f"picture cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise BadSample("picture has changed its size")
        return data


class Unread(Sequence[bytes]):
    """Encoded pictures, read when asked for: a rank reads only those that it embeds.

    read: gives the i-th; where it raises BadSample there is one that does not decode, since an
    error on one rank would hang the others.
    """

    def __init__(self, count: int, read: Callable[[int], bytes]):
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._read(range(self._count)[index])
        except BadSample:
            return b""


def pictures_of(samples: Sequence[LocalSample]) -> Unread:
    """One of each sample."""
    return Unread(len(samples), lambda i: samples[i].image_bytes or b"")


def first_pictures(people: Sequence[Identity], num_each: int) -> Unread:
    """So many of each person who has that many, one person after the other."""
    shown = [one for one in people if one.faces]
    pictures = Pictures.of(shown)
    places = [i for i in range(len(shown)) if pictures.count(i) >= num_each]
    return Unread(
        len(places) * num_each, lambda i: pictures.read(places[i // num_each], i % num_each)
    )


class _Entry(NamedTuple):
    """A picture in a shard or a folder."""

    folder: str  # in the shard; "" if none
    place: int | str  # offset in the shard, or name in the folder
    size: int  # bytes


class _Rows:
    """The pictures' columns while they grow.

    A file's name is kept once, for many folders have the same; its number stands among the
    offsets, inverted and so negative.
    """

    def __init__(self):
        self.owners, self.sources = array("i"), array("i")
        self.places, self.sizes = array("q"), array("q")
        self.paths: dict[str, int] = {}
        self.names: dict[str, int] = {}

    def add(self, path: str, entries: list[tuple[int, _Entry]]) -> None:
        source = self.paths.setdefault(path, len(self.paths))
        for owner, (_, place, size) in entries:
            if isinstance(place, str):
                place = ~self.names.setdefault(place, len(self.names))
            self.owners.append(owner)
            self.sources.append(source)
            self.places.append(place)
            self.sizes.append(size)


def _shown(path: str, owners: dict[str, int], identities: Sequence[Identity]) -> str:
    """What a message may call it: a pseudonym where the path is one person's own."""
    if len(owners) > 1:
        return path
    (owner,) = owners.values()
    return f"faces of {identities[owner].pseudonym} (person {owner + 1} of {len(identities)})"


def _paths_of(faces: str, shown: str) -> list[str]:
    """A folder, or the files that a pattern names."""
    if is_remote(faces):
        raise ValueError(f"{shown}: pictures of people are read at random; download them first")
    if os.path.isdir(faces):
        return [faces]
    try:
        return expand([faces])
    except FileNotFoundError as error:
        detail = str(error) if shown == faces else "not there, or not all shards of the pattern are"
        raise FileNotFoundError(f"{shown}: {detail}") from None
    except ValueError:
        raise ValueError(f"{shown}: not a pattern; see to its braces") from None


def _entries_of(path: str, shown: str) -> list[_Entry]:
    try:
        if os.path.isdir(path):
            return _entries_of_folder(path)
        if is_visible_picture(path):
            return [_Entry("", 0, os.path.getsize(path))]  # its own shard of one
        return _entries_of_shard(path, shown)
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read: {error.strerror}") from None


def is_visible_picture(name: str) -> bool:
    base = os.path.basename(name)
    stem, _, extension = base.rpartition(".")
    # Hidden ones are what macOS lays beside the pictures, under their names.
    return extension.lower() in PICTURES and stem != "" and not base.startswith(".")


def _entries_of_folder(path: str) -> list[_Entry]:
    with os.scandir(path) as files:
        found = [file for file in files if is_visible_picture(file.name) and file.is_file()]
        return sorted(_Entry("", file.name, file.stat().st_size) for file in found)


def _entries_of_shard(path: str, shown: str) -> list[_Entry]:
    entries, wrong = [], Counter[str]()
    for found in walk(path):
        if isinstance(found, BadSample):
            wrong[found.reason] += 1
        elif is_visible_picture(found.name):
            entries.append(_Entry(os.path.dirname(found.name), found.offset, found.size))
    for reason, times in wrong.items():
        warnings.warn(
            f"{shown}: {reason} ({times}); the {len(entries)} pictures beside are used",
            stacklevel=2,
        )
    return entries


def _owned(entries: list[_Entry], owners: dict[str, int], path: str) -> list[tuple[int, _Entry]]:
    if any(entry.folder for entry in entries):
        return [(owners[one.folder], one) for one in entries if one.folder in owners]
    if entries and len(owners) > 1:
        raise ValueError(
            f"{path} has no folders but is the faces of {len(owners)} people; give each their own, "
            "or in a shard put each person's pictures in a folder <id>/"
        )
    return [(owner, entry) for owner in owners.values() for entry in entries]


def _refuse_people_without(pictures: Pictures, identities: Sequence[Identity]) -> None:
    without = [one.pseudonym for i, one in enumerate(identities) if not pictures.count(i)]
    if without:
        raise ValueError(
            f"{len(without)} of {len(identities)} people have no picture: {', '.join(without[:5])}"
            f"{' ...' if len(without) > 5 else ''}; name a folder or shards in `faces` (in shards "
            "each person's pictures in a folder <id>/), or for what needs pictures take a copy of "
            "the roster, beside it, without them"
        )


def refuse_unseen(
    shown: Tensor, pictures: Sequence[bytes], teacher: Encoder, what: str = "pictures"
) -> None:
    """Raises FloatingPointError where a model lost pictures that the teacher sees.

    shown: (n,), whether the model's embedding of each is finite. The teacher is sound: what it
    cannot see is broken, for both. It is asked of the lost alone, a few broken files as a rule;
    and not where all are lost, which is the caller's to tell.
    """
    lost = shown.logical_not().nonzero().flatten().tolist()
    if not 0 < len(lost) < len(shown):
        return
    taught = teacher.encode_image(Unread(len(lost), lambda i: pictures[lost[i]]))
    if taught.isfinite().all(-1).any():
        raise FloatingPointError(f"the student's image embeddings of {what} are not finite")
