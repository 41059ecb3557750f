"""The people asked for: names, aliases, faces, and the pseudonym that stands for each outside."""

from __future__ import annotations

import csv
import hmac
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

KEY_FILE = "pseudonyms.key"
KEY_BYTES = 32
MAX_NAME = 200  # characters
COLUMNS = ("name", "aliases", "faces", "id")
# Apostrophes, hyphens, dots and the like separate or vanish by typist: they count as spaces.
_PUNCTUATION = re.compile(r"[\s'’‘`´.,;:_\-‐‑‒–—\"“”()\[\]/]+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_ASCII_FOLD = str.maketrans({c: " " for c in "'`.,;:_-\"()[]/\t\n\r"})


@dataclass(frozen=True)
class Identity:
    """Someone in a roster. Its repr is the pseudonym alone: names do not leak through tracebacks."""

    id: str = field(repr=False)
    name: str = field(repr=False)
    aliases: tuple[str, ...] = field(repr=False)
    faces: str | None = field(repr=False)
    pseudonym: str


def fold(text: str) -> str:
    """Lower case without accents or punctuation, single spaces: how names are compared."""
    if text.isascii():
        return " ".join(text.lower().translate(_ASCII_FOLD).split())
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(_PUNCTUATION.sub(" ", plain).casefold().split())


def read_roster(path: str | Path) -> list[Identity]:
    """CSV with a header, or JSON lines (`.jsonl`): name, and if known aliases, faces, id.

    Aliases are separated by `;` in CSV and a list in JSON; faces are relative to the roster.
    Raises ValueError naming lines, never people; FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"roster {path} is not there")
    rows = _read_json_lines(path) if path.suffix in (".jsonl", ".ndjson") else _read_csv(path)
    key = _key_beside(path)
    people, lines, problems = [], [], []
    for line, row in rows:
        problem = _problem_of(row)
        if problem:
            problems.append(f"line {line}: {problem}")
            continue
        people.append(_identity(row, key, path.parent))
        lines.append(line)
    problems += _duplicates(people, lines)
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"roster {path}:\n" + "\n".join(problems[:20]) + more)
    if not people:
        raise ValueError(f"roster {path} has no row; write one person per line")
    return people


def _read_csv(path: Path) -> Iterator[tuple[int, dict | str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        _check_columns(path, rows.fieldnames or [])
        for row in rows:
            if None in row or None in row.values():
                yield rows.line_num, "not as many values as the header has columns"
                continue
            aliases = [part.strip() for part in row.get("aliases", "").split(";") if part.strip()]
            yield rows.line_num, row | {"aliases": aliases}


def _check_columns(path: Path, found: Iterable[str]) -> None:
    unknown = [name for name in found if name not in COLUMNS]
    if unknown or "name" not in found:
        problem = f"unknown column {unknown[0]!r}" if unknown else "no column `name`"
        raise ValueError(f"roster {path} line 1: {problem}; possible: {', '.join(COLUMNS)}")


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict | str]]:
    with open(path, encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError:
                yield line, "not JSON"
                continue
            if not isinstance(row, dict):
                yield line, 'not an object; write {"name": ...}'
            elif unknown := [name for name in row if name not in COLUMNS]:
                yield line, f"unknown field {unknown[0]!r}; possible: {', '.join(COLUMNS)}"
            else:
                yield line, row


def _problem_of(row: dict | str) -> str | None:
    """Never quotes a name."""
    if isinstance(row, str):
        return row
    aliases = row.get("aliases") or []
    if not isinstance(aliases, list):
        return "aliases must be a list"
    for value in (row.get("name"), *aliases):
        if not isinstance(value, str) or not value.strip():
            return "the name or an alias is empty; write it out"
        if len(value) > MAX_NAME:
            return f"the name or an alias is longer than {MAX_NAME} characters"
        if any(unicodedata.category(c) == "Cc" for c in value):
            return "the name or an alias has a control character"
        if not fold(value):
            return "the name or an alias has no letter"
    return None


def _identity(row: dict, key: bytes, folder: Path) -> Identity:
    name = " ".join(row["name"].split())
    pseudonym = hmac.digest(key, fold(name).encode(), "sha256").hex()[:16]
    faces = str(row.get("faces") or "").strip()
    return Identity(
        id=str(row.get("id") or "").strip() or pseudonym,
        name=name,
        aliases=tuple(" ".join(alias.split()) for alias in row.get("aliases") or []),
        faces=os.path.join(folder, faces) if faces else None,
        pseudonym=pseudonym,
    )


def _duplicates(people: list[Identity], lines: list[int]) -> list[str]:
    problems = []
    names: dict[str, int] = {}
    ids: dict[str, int] = {}
    for person, line in zip(people, lines):
        if ids.setdefault(person.id, line) != line:
            problems.append(f"lines {ids[person.id]} and {line}: the same id")
        for name in {fold(one) for one in (person.name, *person.aliases)}:
            if names.setdefault(name, line) != line:
                problems.append(f"lines {names[name]} and {line}: the same name or alias, folded")
    return problems


def _key_beside(roster: Path) -> bytes:
    """The key of the pseudonyms, made if missing; processes that start together agree on one."""
    path = roster.parent / KEY_FILE
    if not path.exists():
        aside = path.with_name(f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(aside, path)
            except FileExistsError:
                pass  # another process was first: its key is the one
            finally:
                aside.unlink()
        except OSError as error:
            raise ValueError(
                f"no {KEY_FILE} beside {roster} and none can be made ({error.strerror}); "
                "copy the roster to a folder of your own"
            ) from None
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} has {len(key)} bytes, not {KEY_BYTES}; remove it to have one made")
    return key


class NameIndex:
    """Whether a caption names any of many people, as whole words after folding."""

    def __init__(self, names: Iterable[str]):
        self._by_first: dict[str, list[str]] = {}
        self._unspaced: list[str] = []
        for name in dict.fromkeys(map(fold, names)):
            if _UNSPACED.search(name):
                self._unspaced.append(name)
            elif name:
                # Padded, so that whole words are compared.
                self._by_first.setdefault(name.split(" ", 1)[0], []).append(f" {name} ")
        self._firsts = self._by_first.keys()

    def names_anyone(self, caption: str) -> bool:
        folded = fold(caption)
        words = folded.split(" ")
        found = self._firsts & set(words)
        if found:
            padded = f" {folded} "
            if any(name in padded for first in found for name in self._by_first[first]):
                return True
        return any(name in folded for name in self._unspaced)

    def __getstate__(self) -> dict:
        return {"_by_first": self._by_first, "_unspaced": self._unspaced}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._firsts = self._by_first.keys()
