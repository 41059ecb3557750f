"""One person's pictures, told from everybody else's and taken away: files, or parts of shards."""

from __future__ import annotations

import fcntl
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, NamedTuple

from braceexpand import braceexpand

from trainer.api import BadSample
from trainer.data.shards import PICTURES, walk
from trainer.people.pictures import is_visible_picture
from trainer.people.roster import Identity
from trainer.system.addresses import is_remote
from trainer.system.files import replace

CHUNK_BYTES = 8 << 20


class Part(NamedTuple):
    """A file of which a person's part, or all, is to go."""

    path: Path
    is_shard: bool
    pictures: Sequence[bytes]  # theirs in it; one person's fit in memory
    remove: Callable[[], None]


@contextmanager
def without_paths(who: str, then: str) -> Iterator[None]:
    """Raises ValueError for an OSError, whose own words tell the path: often the person's name."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{who}: {error.strerror}; {then}") from None


def parts_of(person: Identity, people: Sequence[Identity], who: str, begun: bool) -> list[Part]:
    """Raises ValueError where their pictures are not there, or cannot be told from those of others,
    or be removed; OSError where they cannot be read.

    who: what a message may call their faces; begun: an earlier attempt may have removed some.
    """
    if person.faces is None:
        return []
    if is_remote(person.faces):
        raise ValueError(f"{who} lie elsewhere; remove them there, clear `faces`, and ask again")
    paths = _paths_of(person)
    if not begun and not all(map(os.path.exists, paths or [person.faces])):
        raise ValueError(
            f"{who} are not there, or not all; restore or mount them, or clear `faces`"
        )
    of_others = _places_of_others(person, people)
    parts = []
    for path in map(Path, filter(os.path.exists, paths)):
        is_shared = _is_among(path, of_others) or (path.is_file() and _lies_in(path, of_others))
        if is_shared and (path.is_dir() or _is_picture(path)):
            raise ValueError(f"{who} are of several people; give each a folder of their own")
        if path.is_dir() or _is_picture(path):
            pictures = filter(_is_picture, sorted(path.iterdir()) if path.is_dir() else [path])
            parts += [_whole(one, of_others) for one in pictures]
        elif (part := _of_shard(path, person, of_others, is_shared, who)) is not None:
            parts.append(part)
    if not begun and not any(part.pictures for part in parts):
        raise ValueError(f"{who} have no picture; restore or mount them, or clear `faces`")
    return parts


def own_folders(person: Identity, people: Sequence[Identity], roster: Path) -> list[str]:
    """Folders that `faces` names, or of which it names all that is in them; in which neither
    others' faces nor the roster are."""
    paths = [] if person.faces is None else _paths_of(person)
    folders = [path for path in paths if os.path.isdir(path)]
    for folder in {os.path.dirname(path) for path in paths if os.path.isfile(path)}:
        if {os.path.join(folder, name) for name in os.listdir(folder)} <= {*paths}:
            folders.append(folder)
    if not folders:
        return []
    others = filter(os.path.exists, _places_of_others(person, people))
    kept = [os.path.realpath(roster), *others]
    return [
        folder
        for folder in folders
        if not any(path.startswith(f"{os.path.realpath(folder)}{os.sep}") for path in kept)
    ]


def clear(folder: str) -> int:
    """Removes it where it is empty, and a link to it; else how many files and folders are in it."""
    left = sum(len(folders) + len(files) for _, folders, files in os.walk(folder))
    if not left:
        with suppress(OSError):
            os.rmdir(os.path.realpath(folder))
            if os.path.islink(folder):
                os.unlink(folder)
    return left


def _places_of_others(person: Identity, people: Sequence[Identity]) -> set[str]:
    return {
        os.path.realpath(path)
        for one in {one.faces: one for one in people if one is not person}.values()
        if one.faces is not None and not is_remote(one.faces)
        for path in _paths_of(one)
    }


def _is_among(path: Path, places: Set[str]) -> bool:
    return os.path.realpath(path) in places


def _lies_in(path: Path, places: Set[str]) -> bool:
    return os.path.dirname(os.path.realpath(path)) in places or _is_among(path.parent, places)


def _paths_of(person: Identity) -> list[str]:
    """A folder or file, or all that a pattern names, be they there or not."""
    faces = person.faces or ""
    if os.path.exists(faces):
        return [faces]
    try:
        found = list(braceexpand(faces))
    except ValueError:  # whose words quote it
        raise ValueError(
            f"faces of {person.pseudonym} are no pattern; mend their braces in the roster"
        ) from None
    return [path for one in found for path in (sorted(glob(one)) if has_magic(one) else [one])]


def _is_picture(path: Path) -> bool:
    """Hidden ones too: macOS lays small previews beside the pictures."""
    return path.suffix.lower().removeprefix(".") in PICTURES and path.is_file()


def _whole(
    path: Path,
    of_others: Set[str],
    is_shard: bool = False,
    pictures: Sequence[bytes] | None = None,
) -> Part:
    def remove() -> None:
        if not (_is_among(path, of_others) or _lies_in(path, of_others)):
            path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # a link, whose name may be theirs

    return Part(path, is_shard, [path.read_bytes()] if pictures is None else pictures, remove)


def _of_shard(
    path: Path, person: Identity, of_others: Set[str], is_shared: bool, who: str
) -> Part | None:
    """Their folder in a shard; or all of it where it has no folders and is theirs alone."""
    entries, folder = [], person.id
    for entry in walk(str(path)):
        if isinstance(entry, BadSample):
            raise ValueError(f"{who}: {entry.reason}; nothing was removed, mend the shard first")
        entries.append(entry)
    # By what `Pictures` sees: other files may lie in folders where pictures do not.
    visible = [one for one in entries if is_visible_picture(one.name)]
    has_folders = any("/" in one.name for one in visible or entries)
    if entries and not has_folders and is_shared:
        raise ValueError(f"{who}: a shard without folders is of several people; pack them anew")
    own = [one for one in entries if not has_folders or _is_in(one.name, folder)]
    if not own:
        return None
    with path.open("rb") as file:
        pictures = [
            _read(file, one.offset, one.size)
            for one in own
            if one.name.rpartition(".")[2].lower() in PICTURES
        ]
    is_named_alone = not has_folders or person.faces == str(path)
    if len(own) == len(entries) and not is_shared and is_named_alone:
        return _whole(path, of_others, True, pictures)
    # Also where nothing is left in it: others' patterns name it, of this roster or another.
    return Part(path, True, pictures, lambda: _write_without(path.resolve(), folder))


def _is_in(name: str, folder: str) -> bool:
    name = name.removeprefix("./").rstrip("/")
    return name == folder or name.startswith(f"{folder}/")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _write_without(path: Path, folder: str) -> None:
    """The tar without a folder of it; every other byte stays what and in the order it was.

    One at a time: rosters of several folders may name it.
    """
    with _held(path):
        _cut(path, folder)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    while True:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else it was written anew
                yield
                return


def _cut(path: Path, folder: str) -> None:
    with tarfile.open(path, "r:") as tar:
        cuts, start = [], 0
        while entry := tar.next():
            if _is_in(entry.name, folder):
                cuts.append((start, entry.offset))
                start = tar.offset
        cuts.append((start, path.stat().st_size))

    def write(aside: BinaryIO) -> None:
        with path.open("rb") as file:
            for start, stop in cuts:
                file.seek(start)
                while chunk := file.read(min(CHUNK_BYTES, stop - file.tell())):
                    aside.write(chunk)

    replace_whole(path, write)


def replace_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Whole or as it was, and readable by whom it was: a new file by its owner alone. Of a link
    what it leads to."""
    path = path.resolve()

    def privately(aside: Path) -> None:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            write(file)
        if path.exists():
            shutil.copymode(path, aside)

    replace(path, privately)
