"""The people asked for: names, aliases, faces, and the pseudonym that stands for each outside.

A roster is a CSV file with a header, or JSON lines, in UTF-8. `name` is required. `aliases` are
separated by `;` in CSV and a list in JSON; `faces` is a folder of pictures or a pattern of shards,
relative to the roster's folder; `id` names the person's folder in such shards.

    name,aliases,faces,id
    Joe Doe,J. Doe;Joey,"faces/{000..010}.tar",p00012
"""

from __future__ import annotations

import csv
import hmac
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer.people.names import NameIndex, fold, is_control

KEY_FILE = "pseudonyms.key"
KEY_BYTES = 32
MAX_CHARACTERS = 200  # of a name, an alias, an id
MAX_PROBLEMS = 20  # told at once
COLUMNS = ("name", "aliases", "faces", "id")
_OPTIONAL = "`aliases`, `faces`, `id`"


@dataclass(frozen=True, slots=True)
class Identity:
    """Someone in a roster. Its repr is the pseudonym alone: a traceback tells no name."""

    id: str = field(repr=False)
    name: str = field(repr=False)
    aliases: tuple[str, ...] = field(repr=False)
    faces: str | None = field(repr=False)
    pseudonym: str


def read_roster(path: str | Path, may_be_empty: bool = False) -> list[Identity]:
    """Everyone in it, in its order. A person without `id` has the pseudonym for one.

    may_be_empty: as where the last person was taken out.
    Raises FileNotFoundError, and ValueError naming lines, never people.
    """
    path = Path(path)
    rows: list[_Row] = []
    problems: list[str] = []
    named: dict[str, int] = {}  # folded name or alias -> its line
    ids: dict[str, int] = {}
    for line, raw in _raw_rows(path):
        try:
            row = _checked(raw)
        except ValueError as problem:
            problems.append(f"line {line}: {problem}")
            continue
        rows.append(row)
        if row.id and (first := ids.setdefault(row.id, line)) != line:
            problems.append(f"lines {first} and {line} have the same id; give each their own")
        for name in row.folded:
            if (first := named.setdefault(name, line)) != line:
                problems.append(
                    f"lines {first} and {line} have the same name or alias, accents, case and "
                    "punctuation aside; keep one of them"
                )
    if problems:
        told = "\n".join(problems[:MAX_PROBLEMS])
        more = len(problems) - MAX_PROBLEMS
        raise ValueError(f"roster {path}:\n{told}" + (f"\nand {more} more" if more > 0 else ""))
    if not rows and not may_be_empty:
        raise ValueError(f"roster {path} has no row; write one person per line")
    key = _key_beside(path)
    places = {faces: _placed(faces, path.parent) for faces in {row.faces for row in rows}}
    return [_identity(row, places[row.faces], key) for row in rows]


class _Row(NamedTuple):
    name: str
    aliases: tuple[str, ...]
    faces: str
    id: str
    folded: tuple[str, ...]  # name first, each once


def _raw_rows(path: Path) -> Iterator[tuple[int, dict | str]]:
    """(line number, fields) of each row, or what is wrong with it in the place of its fields."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"roster {path} is neither .csv nor .jsonl; rename or convert it")
    if not path.is_file():
        raise FileNotFoundError(f"roster {path} is not there")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"roster {path} line {line} is not UTF-8; save it as UTF-8") from None
    return _json_rows(text) if path.suffix == ".jsonl" else _csv_rows(path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict | str]]:
    # strict: an unclosed quote would swallow the rows after it.
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for values in rows:
            if not values:
                pass  # an empty line
            elif header is None:
                header = _checked_header(path, line, values)
            elif len(values) != len(header):
                yield (
                    line,
                    (
                        f"{len(values)} values for {len(header)} columns; "
                        "put double quotes around a value that has a comma"
                    ),
                )
            else:
                row: dict = dict(zip(header, values))
                if aliases := row.get("aliases"):
                    row["aliases"] = [alias for alias in aliases.split(";") if alias.strip()]
                yield line, row
            line = rows.line_num + 1  # of the next row's first line
    except csv.Error:
        yield line, 'a double quote is never closed, or text follows it; write "" for one inside'


def _checked_header(path: Path, line: int, values: list[str]) -> list[str]:
    header = [value.strip().lower() for value in values]
    wanted = f"roster {path} line {line} must be a header: `name`, if known {_OPTIONAL}"
    for i, column in enumerate(header, start=1):
        if column not in COLUMNS:  # not quoted: where the header is missing this is a name
            raise ValueError(f"{wanted}, separated by commas; column {i} is none of these")
        if column in header[: i - 1]:
            raise ValueError(f"{wanted}; `{column}` stands there twice")
    if "name" not in header:
        raise ValueError(f"{wanted}; `name` is missing")
    return header


def _json_rows(text: str) -> Iterator[tuple[int, dict | str]]:
    for line, one in enumerate(text.split("\n"), start=1):  # a string may hold other line ends
        if not one.strip():
            continue
        try:
            row = json.loads(one)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield line, 'not a JSON object; write {"name": "..."}'
        elif not row.keys() <= set(COLUMNS):
            yield line, f"has a field that is none of `name`, {_OPTIONAL}"
        else:
            yield line, row


def _checked(raw: dict | str) -> _Row:
    """Raises ValueError with what is wrong; it never quotes a value."""
    if isinstance(raw, str):
        raise ValueError(raw)
    name = _checked_text(raw.get("name") or "", "the name")
    aliases = raw.get("aliases") or []
    if not isinstance(aliases, list):
        raise ValueError("the aliases are not a list")
    aliases = tuple(_checked_text(alias, "an alias") for alias in aliases)
    faces = raw.get("faces") or ""
    if not isinstance(faces, str):
        raise ValueError("the faces are not text; name a folder or a pattern of shards")
    own_id = raw.get("id")
    if type(own_id) is int:  # a bool is none
        own_id = str(own_id)
    own_id = _checked_text(own_id, "the id") if own_id not in ("", None) else ""
    folded = tuple(dict.fromkeys([fold(one) for one in (name, *aliases)]))
    if not all(folded):
        raise ValueError("the name or an alias has no letter or digit")
    return _Row(name, aliases, faces.strip(), own_id, folded)


def _checked_text(value: object, what: str) -> str:
    """The value with single spaces."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is not text")
    # isprintable is quick, but refuses the joiners and marks of direction that some names need.
    if not value.isprintable() and any(is_control(c) for c in value):
        raise ValueError(f"{what} has a control character or a line break; remove it")
    text = " ".join(value.split())
    if not text:
        raise ValueError(f"{what} is empty; write it or remove the row")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{what} is longer than {MAX_CHARACTERS} characters; shorten it")
    return text


def _placed(faces: str, folder: Path) -> str | None:
    if not faces or "://" in faces or faces.startswith("pipe:"):
        return faces or None
    return os.path.join(folder, faces)


def _identity(row: _Row, faces: str | None, key: bytes) -> Identity:
    pseudonym = hmac.digest(key, row.folded[0].encode(), "sha256")[:8].hex()
    return Identity(row.id or pseudonym, row.name, row.aliases, faces, pseudonym)


def _key_beside(roster: Path) -> bytes:
    """The key of the pseudonyms, made if missing; processes that start together agree on one."""
    path = roster.parent / KEY_FILE
    if not path.exists():
        aside = path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            # A link appears whole or not at all, and where another was first, theirs is the key.
            with suppress(FileExistsError):
                os.link(aside, path)
        except OSError as error:
            raise ValueError(
                f"no {KEY_FILE} beside roster {roster} and none can be made ({error.strerror}); "
                f"copy the roster to a folder of your own, or make the key: "
                f"head -c {KEY_BYTES} /dev/urandom > {path}"
            ) from None
        finally:
            with suppress(OSError):  # also where nothing can be written, so nothing was
                aside.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"{path} has {len(key)} bytes, not {KEY_BYTES}; restore it, or remove it for a new one "
            "to be made, with which every pseudonym changes"
        )
    return key


def names_of(people: Iterable[Identity]) -> list[str]:
    """Names and aliases."""
    return [name for one in people for name in (one.name, *one.aliases)]


def refuse_named(option: str, people: Sequence[Identity], index: NameIndex, whose: str) -> None:
    """Raises ValueError where people of one roster bear a name of another, telling how many."""
    if shared := sum(any(map(index.names_anyone, names_of([one]))) for one in people):
        raise ValueError(
            f"{shared} of the {len(people)} people of `{option}` have a name {whose}; "
            "take them out of one of the two rosters"
        )
