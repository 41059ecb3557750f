"""Is the model as good as before at ordinary tasks? Not worse by more than a margin, or unknown."""

from __future__ import annotations

import math
from typing import NamedTuple

from trainer.reports.findings import tasks
from trainer.reports.results import Results
from trainer.reports.words import count_points
from trainer.statistics import Estimate

NOT_WORSE, WORSE, OPEN = "not worse", "worse", "cannot be told"


class Judgement(NamedTuple):
    label: str
    change: Estimate | None  # after - before; None where it was not measured after
    verdict: str


def judged(results: Results) -> list[Judgement]:
    """Each measure of utility that had an interval before; of what gave none after, as where its
    evaluation failed, nothing can be told."""
    found = []
    for row in (row for section in tasks(results) for row in section.rows):
        if isinstance(row.before, Estimate) and isinstance(row.after, Estimate):
            change = row.change if row.change is not None else difference(row.before, row.after)
            found.append(Judgement(row.label, change, _verdict(change, results.margin)))
        elif isinstance(row.before, Estimate) and row.after is None:
            found.append(Judgement(row.label, None, OPEN))
    return found


def in_words(judgements: list[Judgement], margin: float) -> str:
    """One sentence, empty where nothing was judged."""
    if not judgements:
        return ""
    by_verdict: dict[str, list[str]] = {NOT_WORSE: [], WORSE: [], OPEN: []}
    for one in judgements:
        by_verdict[one.verdict].append(one.label)
    told = "; ".join(
        f"{verdict}: {', '.join(some)}" for verdict, some in by_verdict.items() if some
    )
    return f"Ordinary tasks, with a margin of {count_points(margin)}: {told}."


def difference(before: Estimate, after: Estimate) -> Estimate:
    """after - before, with an interval made of theirs by square and add.

    (Newcombe, Statistics in Medicine 17, 1998, method 10, for independent samples: where both were
    measured of the same, but not case by case, it is wider than it had to be, never too sure.)
    """
    change = after - before
    down = math.hypot(after - after.low, before.high - before)
    up = math.hypot(after.high - after, before - before.low)
    return Estimate(change, change - down, change + up)


def _verdict(change: Estimate, margin: float) -> str:
    if change.low > -margin:
        return NOT_WORSE
    return WORSE if change.high < -margin else OPEN
