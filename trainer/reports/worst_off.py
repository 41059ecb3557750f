"""What a run did to single people to keep: who was lost, who came back, whom it harmed most."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.reports.findings import LOST, WON_BACK
from trainer.reports.groups import GROUPS, NONE, SAME, Group
from trainer.statistics import Estimate, rate

WON = "prompts_won"  # of one person, how many prompts named them


class Kept(NamedTuple):
    """A person to keep, and by how many prompts they are found."""

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
    for path, one in _kept(rows):
        kind = LOST if one.before else WON_BACK
        is_turned = bool(one.before) != bool(one.after)
        found.setdefault(f"{path}/{one.group}/{kind}", []).append(is_turned)
    return {name: rate(sum(ones), len(ones)) for name, ones in found.items()}


def worst_off(rows: Iterable[Mapping[str, Any]], groups: Sequence[Group]) -> list[Kept]:
    """Who lost prompts of the attack, most first; of several attacks each person's worst.

    groups: those attacked. Attacks may have other numbers of prompts: the share of them counts.
    """
    num_prompts = {group.path: group.num_prompts for group in groups}
    harmed = [
        ((one.after - one.before) / (num_prompts.get(f"{path}/{one.group}") or 1), one)
        for path, one in _kept(rows)
        if one.after < one.before
    ]
    harmed.sort(key=lambda found: (found[0], found[1].after, found[1].identity))
    worst: dict[str, Kept] = {}
    for _, one in harmed:
        worst.setdefault(one.identity, one)
    return list(worst.values())


def _kept(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Kept]]:
    """The attack's path, and a person to keep whom it measured at both moments."""
    for row in rows:
        group = row.get("group", "")
        _, wanted = GROUPS.get(group, ("", NONE))
        before, after = (row.get(moment, {}).get(WON) for moment in ("before", "after"))
        path = row["measure"].rpartition("/")[0]
        is_attack = row["measure"].startswith("identity_inference/")
        if is_attack and wanted == SAME and None not in (before, after):
            yield path, Kept(row["identity"], group, before, after)
