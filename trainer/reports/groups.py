"""The groups of people under attack: which there are, and which of several attacks is told of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.reports.results import Results
from trainer.reports.words import count_prompts, last_part

LOW, SAME, NONE = "low", "as before", ""  # what the run wants of a measure
GROUPS = {  # name in the results: what it is called here, what the run wants of it
    "forget": ("People to forget", LOW),
    "replayed": ("People to keep, replayed in training", SAME),
    "unseen": ("People to keep, unseen in training", SAME),
    "unknown": ("People it never learnt", LOW),
}


@dataclass(frozen=True)
class Group:
    """One group of people under attack; `path` leads to its measures."""

    path: str
    title: str
    wanted: str
    majority: int | None  # the prompts of the `tpr_11` among its measures
    num_prompts: int | None

    @property
    def name(self) -> str:
        return last_part(self.path)

    def prompts(self, count: int) -> str:
        return count_prompts(count, self.num_prompts)


def attacked(results: Results) -> list[Group]:
    """The groups of people that the measures tell of: to forget, to keep, never learnt, others."""
    groups = []
    for name in results.names:
        matched = re.fullmatch(r"(identity_inference/.+)/tpr", name)
        if not matched or last_part(matched[1]) == "held_out":
            continue
        path = matched[1]
        _, *between, last = path.split("/")
        title, wanted = GROUPS.get(last, (f"People of group {last}", NONE))
        won: Any = results.count(f"{path}/prompts_won")
        most = re.compile(re.escape(path) + r"/tpr_(\d+)")
        majority = next(
            (int(hit[1]) for one in results.names if (hit := most.fullmatch(one))), None
        )
        title = " ".join([title, *(f"({part})" for part in between)])
        groups.append(Group(path, title, wanted, majority, len(won) - 1 if won else None))
    order = list(GROUPS)
    return sorted(
        groups,
        key=lambda group: (
            group.path.count("/"),
            order.index(group.name) if group.name in order else len(order),
        ),
    )


def most_found(results: Results, groups: Sequence[Group]) -> Group | None:
    """The people to forget, of several attacks by that which finds most of them; of those that
    find as many by that which looked for most."""
    asked = [group for group in groups if group.name == "forget"]

    def found(group: Group) -> tuple[float, float]:
        people = results.count(f"{group.path}/people") or 0.0
        return (results.pair(f"{group.path}/tpr")[1] or 0.0) * (people or 1.0), people

    return max(asked, key=found, default=None)


def of_one_attack(results: Results, groups: Sequence[Group]) -> dict[str, Group]:
    """A group of each name: those of the attack that found most of the people to forget, and of
    others what it has not."""
    by_name = {group.name: group for group in reversed(groups)}
    if forget := most_found(results, groups):
        attack = forget.path.removesuffix("forget")
        by_name |= {group.name: group for group in groups if group.path == attack + group.name}
    return by_name


def prompts(count: int, groups: Sequence[Group]) -> str:
    """Of how many, where all of the groups have as many."""
    numbers = {group.num_prompts for group in groups}
    return count_prompts(count, numbers.pop() if len(numbers) == 1 else None)
