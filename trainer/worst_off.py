"""What a run did to single people to keep: who was lost, who came back, whom it harmed most."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer.findings import GROUPS, LOST, NONE, SAME, WON_BACK
from trainer.statistics import Estimate, rate

WON = "prompts_won"  # of one person, how many prompts named them


class Harmed(NamedTuple):
    """A person to keep who is found by fewer prompts than before."""

    identity: str  # a pseudonym
    group: str
    before: int  # prompts
    after: int


def read_people(run: Path) -> list[dict[str, Any]]:
    """`people.jsonl`: a row for each person and measure. Older runs, and evaluations that measure
    nobody, have none."""
    path = run / "people.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def turned(rows: Iterable[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Of each group to keep, by the attack's path: of those found before (by a prompt or more) the
    share that is found no longer, LOST; of the others the share that is found now, WON_BACK."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        group = row.get("group", "")
        _, wanted = GROUPS.get(group, ("", NONE))
        before, after = (row.get(moment, {}).get(WON) for moment in ("before", "after"))
        path, _, last = row["measure"].rpartition("/")
        is_attack = path.startswith("identity_inference") and last == "people"
        if is_attack and wanted == SAME and None not in (before, after):
            kind = LOST if before else WON_BACK
            found.setdefault(f"{path}/{group}/{kind}", []).append(bool(before) != bool(after))
    return {name: rate(sum(ones), len(ones)) for name, ones in found.items()}


def worst_off(rows: Iterable[Mapping[str, Any]]) -> list[Harmed]:
    """Who lost prompts of the attack, most first."""
    harmed = []
    for row in rows:
        group = row.get("group", "")
        _, wanted = GROUPS.get(group, ("", NONE))
        before, after = (row.get(moment, {}).get(WON) for moment in ("before", "after"))
        is_attack = row["measure"].startswith("identity_inference/")
        if is_attack and wanted == SAME and None not in (before, after) and after < before:
            harmed.append(Harmed(row["identity"], group, before, after))
    return sorted(harmed, key=lambda one: (one.after - one.before, one.after, one.identity))
