"""A folder of pictures for each person, to shards and rosters.

A name is personal data: it goes into the rosters alone. In a shard and in a message a person is
the place in the order of folded names, which is the number in their `id` too.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from trainer import BadSample, decode_picture, fold

from .shards import Shards, extension_of, in_order, read_picture, told, vacant, written_aside

GROUPS = ("actors", "actresses")  # of FaceScrub
MAX_CHARACTERS = 200  # of a name that a roster takes
NOT_IN_NAMES = ("Cc", "Cs", "Zl", "Zp")  # Unicode's controls, surrogates, line breaks


class PackedPeople(NamedTuple):
    """What was written: how many people, how many pictures to train on and to attack with."""

    people: int
    pictures: int
    shards: int
    held_out: int
    attack_shards: int
    left_out: int  # people
    skipped: Mapping[str, int]  # reason -> number of files, links or folders


@dataclass(frozen=True, slots=True)
class Person:
    """Someone's folder and the pictures in it. Its repr is empty: a traceback tells no name."""

    name: str = field(repr=False)
    folder: str = field(repr=False)
    files: tuple[str, ...] = field(repr=False)


def pack_people(
    folder: Path, out: Path, shard_size: int, attack: int, min_pictures: int, seed: int
) -> PackedPeople:
    """Write `out`: faces/*.tar and roster.csv; of `attack` pictures each, attack/ and its roster.

    shard_size: pictures. Raises ValueError, FileNotFoundError, FileExistsError; none tells a name.
    """
    root = os.path.realpath(folder)
    if not os.path.isdir(root):
        raise FileNotFoundError("FOLDER is no folder; name one that has a folder for each person")
    if _leads_into(root, out):  # before any message that tells OUT
        raise ValueError("OUT lies in FOLDER, where it would be taken for a person; name another")
    place = vacant(out)
    skipped: Counter[str] = Counter()
    people = find_people(root, skipped)
    paths = (os.path.join(person.folder, file) for person in people for file in person.files)
    total = sum(len(person.files) for person in people)
    roster: list[tuple[str, str, str]] = []
    attack_roster: list[tuple[str, str, str]] = []
    pictures = 0
    with (
        written_aside(place, 0o700) as aside,
        closing(Shards(aside / "faces", shard_size)) as faces,
        closing(Shards(aside / "attack", shard_size)) as attacks,
        closing(in_order(partial(_check, seed), paths, total)) as checked,
    ):
        for i, person in enumerate(people):
            usable = _usable(person, checked, skipped)
            if len(usable) < attack + min_pictures:
                continue
            shown = f"person {i + 1} of {len(people)}, in the order of names,"
            read = partial(_read_again, person.folder, seed, shown)
            held_out = set(sorted(usable)[len(usable) - attack :])
            trained = [one for one in usable.items() if one[0] not in held_out]
            pictures += len(trained)
            roster.append((f"p{i:05d}", person.name, _write(faces, i, trained, read)))
            if attack:
                held = [one for one in usable.items() if one[0] in held_out]
                attack_roster.append((f"p{i:05d}", person.name, _write(attacks, i, held, read)))
        if not roster:
            raise ValueError(
                f"nobody of {len(people)} has enough usable pictures, {attack + min_pictures}; "
                "name the folder that has a folder for each, or ask for fewer; " + told(skipped)
            )
        _write_roster(aside / "roster.csv", roster)
        if attack:
            _write_roster(aside / "attack_roster.csv", attack_roster)
    return PackedPeople(
        people=len(roster),
        pictures=pictures,
        shards=faces.count,
        held_out=attack * len(roster),
        attack_shards=attacks.count,
        left_out=len(people) - len(roster),
        skipped=skipped,
    )


def find_people(root: str, skipped: Counter[str]) -> list[Person]:
    """In the order of their folded names. Raises ValueError."""
    folders: list[tuple[str, str, str]] = []  # folded name, name, path
    for parent in _parents(root, skipped):
        for entry in _entries(parent, root, skipped, "FOLDER"):
            name = " ".join(entry.name.replace("_", " ").split())
            if not os.path.isdir(entry.path):
                skipped["file in no person's folder"] += 1
            elif not _is_name(name):
                skipped["folder whose name is none"] += 1
            else:
                folders.append((fold(name), name, entry.path))
    if not folders:
        raise ValueError(
            f"FOLDER has no folder with a name; it needs one for each person; {told(skipped)}"
        )
    folders.sort()
    people = []
    for i, (folded, name, path) in enumerate(folders):
        shown = f"folder {i + 1} of {len(folders)}, in the order of names,"
        if i and folded == folders[i - 1][0]:
            raise ValueError(
                f"{shown} has the same name as the one before, accents, case and punctuation "
                "aside; rename one, or put their pictures together"
            )
        files = []
        for entry in _entries(path, root, skipped, shown):
            if extension_of(entry.name) and os.path.isfile(entry.path):
                files.append(entry.name)
            else:
                skipped["no picture file"] += 1
        people.append(Person(name, path, tuple(files)))
    return people


def _parents(root: str, skipped: Counter[str]) -> list[str]:
    """The folders whose folders are people: FaceScrub's, or the root alone."""
    folders = _folders(root, root)
    groups = [name for name in GROUPS if name in folders]
    if not groups and "faces" not in folders:
        return [root]
    skipped["folder beside FaceScrub's"] += len(folders) - (len(groups) or 1)
    if not groups:
        return [folders["faces"]]
    parents = []
    for group in groups:
        inside = _folders(folders[group], root)
        if "images" in inside and "faces" not in inside:
            raise ValueError(
                f"FOLDER has {group}/images, whole pictures, but no {group}/faces, "
                "where FaceScrub has the faces; cut them out first"
            )
        parents.append(inside.get("faces", folders[group]))
    return parents


def _folders(parent: str, root: str) -> dict[str, str]:
    entries = _entries(parent, root, Counter(), "FOLDER")
    return {entry.name: entry.path for entry in entries if os.path.isdir(entry.path)}


def _entries(folder: str, root: str, skipped: Counter[str], shown: str) -> list[os.DirEntry[str]]:
    """By name, without hidden ones and links that lead out of the root. Raises ValueError."""
    try:
        with os.scandir(folder) as found:
            visible = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:  # its own words tell the path
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None
    entries = [one for one in visible if not one.is_symlink() or _leads_into(root, one.path)]
    skipped["link that leads out of FOLDER"] += len(visible) - len(entries)
    return sorted(entries, key=lambda entry: entry.name)


def _leads_into(root: str, path: str | Path) -> bool:
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def _is_name(name: str) -> bool:
    """Whether a roster takes it."""
    is_text = not any(unicodedata.category(one) in NOT_IN_NAMES for one in name)
    return is_text and len(name) <= MAX_CHARACTERS and fold(name) != ""


def _check(seed: int, path: str) -> bytes | str:
    """A picture's digest, or why it can't be used."""
    try:
        data = read_picture(path)
        decode_picture(data)
    except BadSample as bad:
        return bad.reason
    return _digest(seed, data)


def _digest(seed: int, data: bytes) -> bytes:
    """Its order draws what is held out: it depends on nothing but the picture and the seed."""
    digest = blake2b(f"{seed}:".encode(), digest_size=16)
    digest.update(data)
    return digest.digest()


def _usable(
    person: Person, checked: Iterator[bytes | str], skipped: Counter[str]
) -> dict[bytes, str]:
    """Digest -> file of those that decode, each picture once: else it is held out and trained on.

    Takes as many of `checked` as the person has files.
    """
    usable: dict[bytes, str] = {}
    for file, digest in zip(person.files, checked):
        if isinstance(digest, str):
            skipped[digest] += 1
        elif digest in usable:
            skipped["picture twice in a folder"] += 1
        else:
            usable[digest] = file
    return usable


def _write(
    shards: Shards,
    number: int,
    pictures: Sequence[tuple[bytes, str]],
    read: Callable[[bytes, str], bytes],
) -> str:
    """A person's pictures into one shard, if they fit. Returns `faces` of the roster."""
    shards.keep_together(len(pictures))
    written = [
        shards.add(f"p{number:05d}/{i:05d}", {extension_of(file) or "": read(digest, file)})
        for i, (digest, file) in enumerate(pictures)
    ]
    first, last = f"{written[0]:05d}", f"{written[-1]:05d}"
    return f"{shards.folder.name}/{first if first == last else f'{{{first}..{last}}}'}.tar"


def _read_again(folder: str, seed: int, shown: str, digest: bytes, file: str) -> bytes:
    """Not kept since it was checked: all of a person's may be more than the memory holds."""
    try:
        data = read_picture(os.path.join(folder, file))
    except BadSample:
        data = b""
    if _digest(seed, data) != digest:
        raise ValueError(f"a picture of {shown} has changed meanwhile; pack again")
    return data


def _write_roster(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    private = partial(os.open, mode=0o600)
    with open(path, "x", newline="", encoding="utf-8", opener=private) as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "faces"])
        writer.writerows(rows)
