"""Someone in a roster asks to be taken out of it: rows, pictures, what is kept of shards.

What stays is a record.

The record, `suppressed.jsonl` beside the roster, holds of people keyed hashes alone: with the
roster's key, and only with it, a later roster can be checked for the name or for a picture that
came back.

Nothing is half done: each file is replaced whole, the record is written before anything goes, and
the row goes last. Whatever was interrupted, the same command again brings to its end.
"""

from __future__ import annotations

import csv
import fcntl
import hmac
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from trainer.api import BadSample
from trainer.data.index import kept_of
from trainer.people.names import fold
from trainer.people.pictures import Pictures
from trainer.people.removal import (
    Part,
    clear,
    own_folders,
    parts_of,
    replace_whole,
    without_paths,
)
from trainer.people.roster import KEY_FILE, Identity, names_of, read_roster

RECORD = "suppressed.jsonl"
ANY_ROSTER = ""


class Removed(NamedTuple):
    """What went with one person."""

    pseudonym: str
    pictures: int
    shards: int  # that were written anew, or removed
    kept: int  # of these shards: indexes, embeddings
    left: int  # files and folders that are still in their own folders


class Found(NamedTuple):
    """Someone in a roster who was once taken out of it, or who has a picture of such a person."""

    place: int  # in the roster, from 1 on
    pseudonym: str
    has_name: bool
    pictures: int


def forget_me(roster: Path, name: str, index: Path | None = None) -> Removed | None:
    """Take the person of that name or alias out; None where there is nobody of it.

    index: a folder of indexes (`index --into`, `data.index`), from which theirs, and embeddings, go
    as well as from beside shards.
    Raises ValueError and FileNotFoundError before anything is changed, ValueError also where files
    cannot be removed; their messages name nobody.
    """
    with _locked(roster):
        rows = read_record(roster.parent / RECORD)
        if rows:
            key_there(roster)
        people = read_roster(roster, may_be_empty=True)
        wanted = fold(name)
        person = next((one for one in people if wanted in map(fold, names_of([one]))), None)
        if person is None:
            return None
        # These faces: another roster of the folder may have other pictures. Records of older
        # versions do not tell of which, and count for none: `faces` that such a version removed in
        # part are to be restored or cleared.
        faces = _hash_of_faces(person, roster)
        own = next((row for row in rows if row["pseudonym"] == person.pseudonym), {})
        begun = not faces.isdisjoint(own.get("faces", ()))
        who = f"faces of {person.pseudonym} in {roster}"
        with without_paths(who, "nothing was removed; let them be read, and ask again"):
            parts = parts_of(person, people, who, begun)
            folders = own_folders(person, people, roster)
        _record(person, parts, roster)
        with without_paths(who, "let them and their indexes be removed, and ask again"):
            kept = _kept_of([part.path for part in parts if part.is_shard], index)
            for one in kept:  # first: of a shard that was written anew it would be wrong
                one.unlink()
            for part in parts:
                part.remove()
            left = sum(map(clear, folders))
        _remove_row(roster, person)
    shards = sum(part.is_shard for part in parts)
    pictures = sum(len(part.pictures) for part in parts)
    return Removed(person.pseudonym, pictures, shards, len(kept), left)


def _kept_of(shards: Sequence[Path], folder: Path | None) -> list[Path]:
    """Indexes and embeddings. A link to a shard may have been indexed, or what it leads to."""
    addresses = dict.fromkeys(one for shard in shards for one in (shard, shard.resolve()))
    places = [None] if folder is None else [None, str(folder)]
    found = {path for one in addresses for place in places for path in kept_of(str(one), place)}
    return list(map(Path, sorted(found)))


def suppressed_in(roster: Path) -> list[Found]:
    """Everyone of the roster whom its record knows by name, or by the bytes of a picture.

    Raises ValueError and FileNotFoundError where the record's key is gone or another.
    """
    rows = read_record(roster.parent / RECORD)
    if rows:
        key_there(roster)
    people, key = read_roster(roster, may_be_empty=True), _key_of(roster)
    names = {one for row in rows for one in row["names"]}
    seen = {one for row in rows for one in row["pictures"]}
    shown = [one for one in people if one.faces is not None] if seen else []
    pictures = Pictures.of(shown) if shown else None
    places = {one.pseudonym: i for i, one in enumerate(shown)}
    found = []
    for i, person in enumerate(people, start=1):
        has_name = any(
            keyed_hash(key, "name", fold(n).encode()) in names for n in names_of([person])
        )
        again = 0
        if pictures is not None and person.pseudonym in places:
            place = places[person.pseudonym]
            again = sum(
                keyed_hash(key, "picture", data) in seen for data in _pictures_of(pictures, place)
            )
        if has_name or again:
            found.append(Found(i, person.pseudonym, has_name, again))
    return found


def _record(person: Identity, parts: Sequence[Part], roster: Path) -> None:
    """A line more, or what is new in the line of an attempt that was interrupted."""
    path, key = roster.parent / RECORD, _key_of(roster)
    rows = {row["pseudonym"]: row for row in read_record(path)}
    names = [keyed_hash(key, "name", fold(one).encode()) for one in names_of([person])]
    pictures = [keyed_hash(key, "picture", data) for part in parts for data in part.pictures]
    before = rows.get(person.pseudonym, {"removed_at": {}, "names": [], "pictures": []})
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds")  # their order is told by it
    rows[person.pseudonym] = {
        "pseudonym": person.pseudonym,
        "removed_at": {**removed_at(before), roster.name: now},
        "names": sorted({*before["names"], *names}),
        "pictures": sorted({*before["pictures"], *pictures}),
        "faces": sorted({*before.get("faces", ()), *_hash_of_faces(person, roster)}),
        "key": _check_value(key),
    }
    lines = "".join(json.dumps(row) + "\n" for row in rows.values())
    replace_whole(path, lambda file: file.write(lines.encode()))


def _hash_of_faces(person: Identity, roster: Path) -> set[str]:
    """Of the place that `faces` names, from wherever and in whichever roster; of none nothing."""
    if person.faces is None:
        return set()
    # Links are followed but for the last, which goes with the pictures.
    folder, name = os.path.split(os.path.abspath(person.faces))
    place = os.path.join(os.path.realpath(folder), name)
    return {keyed_hash(_key_of(roster), "faces", os.fsencode(place))}


def removed_at(row: Mapping[str, Any]) -> dict[str, str]:
    """When a person was taken out last, by their roster's file name; older versions did not say of
    which: `ANY_ROSTER`."""
    found = row.get("removed_at", "")
    return {ANY_ROSTER: found} if isinstance(found, str) else found


def read_record(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if all(row.keys() >= {"pseudonym", "names", "pictures"} for row in rows):
            return rows
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is damaged; restore it, it says who must not come back")


def _remove_row(roster: Path, person: Identity) -> None:
    data = roster.read_bytes()
    mark = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
    text = data.decode("utf-8-sig")
    own = fold(person.name)
    rows = _json_lines(text) if roster.suffix == ".jsonl" else _csv_lines(text)
    kept = "".join(lines for name, lines in rows if name is None or fold(name) != own)
    replace_whole(roster, lambda file: file.write(mark + kept.encode()))


def _csv_lines(text: str) -> Iterator[tuple[str | None, str]]:
    """The name in each row, None in the header and empty lines, and the row's lines as they are."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(iter(lines), strict=True)
    column, start = None, 0
    for values in reader:
        name = None
        if values and column is None:
            column = [value.strip().lower() for value in values].index("name")
        elif values and column is not None:
            name = values[column]
        yield name, "".join(lines[start : reader.line_num])
        start = reader.line_num


def _json_lines(text: str) -> Iterator[tuple[str | None, str]]:
    for line in io.StringIO(text, newline="\n"):
        yield json.loads(line)["name"] if line.strip() else None, line


def _pictures_of(pictures: Pictures, place: int) -> Iterator[bytes]:
    for i in range(pictures.count(place)):
        try:
            yield pictures.read(place, i)
        except BadSample:
            continue  # gone meanwhile


def keyed_hash(key: bytes, what: str, data: bytes) -> str:
    return hmac.digest(key, b"suppressed\0" + what.encode() + b"\0" + data, "sha256").hex()


def _key_of(roster: Path) -> bytes:
    return (roster.parent / KEY_FILE).read_bytes()  # reading the roster made it


def _check_value(key: bytes) -> str:
    return keyed_hash(key, "key", b"")


def key_there(roster: Path) -> bytes:
    """Where it is gone, reading the roster would make another, with which nobody is found again.

    Raises FileNotFoundError, and ValueError where it is not that of the record beside the roster.
    """
    if not (roster.parent / KEY_FILE).is_file():
        raise FileNotFoundError(f"no {KEY_FILE} beside roster {roster} any more; restore it")
    key = _key_of(roster)
    own = _check_value(key)
    rows = read_record(roster.parent / RECORD)
    if any(row.get("key", own) != own for row in rows):  # older records do not say
        raise ValueError(f"{KEY_FILE} beside roster {roster} is not the record's; restore it")
    return key


@contextmanager
def _locked(roster: Path) -> Iterator[None]:
    """One at a time in a folder: two that write a roster anew would bring back each other's."""
    if not roster.is_file():
        raise FileNotFoundError(f"roster {roster} is not there")
    folder = os.open(roster.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
