"""What `metrics.jsonl` tells step by step, as pictures: measures on the way, losses, the watch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.reports.charts import Figure, Points, chart
from trainer.reports.findings import OTHERS, is_other, is_share
from trainer.reports.groups import Group, prompts
from trainer.reports.results import Measures
from trainer.reports.words import spoken

NO_LINES = ("step", "seconds", "bad_samples")  # of a row of metrics: neither measures nor losses
ON_THE_WAY = 3  # points of a measure that was taken between before and after
MOST_LINES = 6  # of one picture
WHOLES = ("neighbours", "others")  # groups: all who are near, all who are not


class Curves(NamedTuple):
    """By name, each over steps."""

    measured: dict[str, Points]
    losses: dict[str, dict[str, Points]]  # by objective, then term
    watched: dict[str, Points]  # speed, memory and the like


def read_curves(run: Path, measured: Collection[str], failed: Iterable[str] = ()) -> Curves:
    """All that a run wrote row by row into one file; measured: the names of evaluations' measures;
    failed: evaluations that gave none before or after, but may have on the way.

    An evaluation without training wrote none.
    """
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    begin = tuple(f"{evaluation}/" for evaluation in failed)
    return _curves((json.loads(line) for line in lines), measured, begin)


def _curves(rows: Iterable[Measures], measured: Collection[str], begin: tuple[str, ...]) -> Curves:
    found: dict[str, Points] = defaultdict(list)
    losses: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    watched: dict[str, Points] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            is_count = name in NO_LINES or name.startswith("bad_samples/")
            if is_count or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            point = (row["step"], value)
            objective, slash, term = name.partition("/")
            if name in measured or name.startswith(begin):
                found[name].append(point)
            elif slash:
                losses[objective][term].append(point)
            else:
                watched[name].append(point)
    return Curves(found, losses, watched)


def found_charts(measured: Mapping[str, Points], groups: Sequence[Group]) -> list[Figure]:
    """Forgotten and kept over the steps; only where something was measured on the way."""
    figures = []
    measures = {f"tpr_{group.majority}": group.majority for group in groups if group.majority}
    for measure, at_least in {"tpr": 1, **measures}.items():
        lines = {
            group.title: measured[f"{group.path}/{measure}"]
            for group in groups
            if len(measured.get(f"{group.path}/{measure}", ())) >= ON_THE_WAY
        }
        if lines:
            drawn = [group for group in groups if group.title in lines]
            title = f"Found by {prompts(at_least, drawn)} or more"
            figures.append(chart(title, lines, percent, top=1.0))
    return figures + _other_charts(measured)


def _other_charts(measured: Mapping[str, Points]) -> list[Figure]:
    """Of each other attack the shares, its six most general."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, points in measured.items():
        if is_other(name) and is_share(name) and len(points) >= ON_THE_WAY:
            found[name.partition("/")[0]].append(name)
    figures = []
    for kind, names in found.items():
        drawn = sorted(names, key=_specificity)[:MOST_LINES]
        lines = {spoken(name.partition("/")[2]): measured[name] for name in drawn}
        figures.append(chart(OTHERS.get(kind, spoken(kind)), lines, percent, top=1.0))
    return figures


def _specificity(measure: str) -> tuple[int, bool]:
    """Least of what tells of most people: the fewest slashes, and a whole before its parts."""
    *path, _ = measure.split("/")
    return len(path), path[-1] not in WHOLES


def loss_charts(losses: Mapping[str, Mapping[str, Points]]) -> list[Figure]:
    return [chart(title, lines, "{:g}".format) for title, lines in losses.items()]


def watch_charts(watched: Mapping[str, Points]) -> list[Figure]:
    """A picture for each, which its title explains: they share no unit."""
    return [
        chart(spoken(name), {spoken(name): points}, _short)._replace(legend=[])
        for name, points in watched.items()
    ]


def percent(tick: float) -> str:
    return f"{100 * tick:g} %"


def _short(tick: float) -> str:
    """1,500,000 as 1.5M: the axis has room for six characters."""
    size = abs(tick)
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{tick / unit:g}{letter}"
    return f"{tick:g}"
