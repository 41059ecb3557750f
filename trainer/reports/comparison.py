"""Several runs on one page: where their configurations differ, what each found, step by step."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trainer.reports.charts import Figure, Points, chart
from trainer.reports.curves import ON_THE_WAY, percent, read_curves
from trainer.reports.findings import LIMITS, Row, others, sections
from trainer.reports.groups import attacked
from trainer.reports.page import write_page
from trainer.reports.results import Results, read_results
from trainer.system.addresses import masked

MOST_DIFFERENCES = 40  # options that are listed
MOST_VALUE = 60  # characters of one


class Compared(NamedTuple):
    name: str
    results: Results
    config: dict[str, Any]  # flat: "objectives.names.weight" -> 0.8
    folder: Path


class Line(NamedTuple):
    """A row of the table: one measure of every run, None where a run did not take it."""

    label: str
    cells: list[Row | None]


def write_comparison(runs: Sequence[Path], path: Path) -> Path:
    """Raises FileNotFoundError and ValueError where a folder is not of a finished run."""
    names = _names_of(runs)
    compared = [
        Compared(name, read_results(run), _config_of(run), run) for name, run in zip(names, runs)
    ]
    return write_page(
        path,
        "comparison.html.jinja",
        runs=compared,
        limits=LIMITS.replace("this model", "these models"),
        table=_table(compared),
        differences=_differences(compared),
        over_steps=_over_steps(compared),
        over_people=_over_people(compared),
    )


def _names_of(runs: Sequence[Path]) -> list[str]:
    """Each folder's own name; with those above it where two have the same."""
    resolved = [run.resolve() for run in runs]
    if len(set(resolved)) < len(resolved):
        raise ValueError("a run is named twice; name each folder once")
    names = [run.name for run in resolved]
    if len(set(names)) == len(names):
        return names
    above = os.path.commonpath(resolved)
    return [str(run.relative_to(above)) for run in resolved]


def _config_of(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; name the folder of a finished run")
    try:
        return _flat(masked(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path} is no YAML; name the folder of a finished run") from None


def _flat(tree: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {above.removesuffix("."): tree}
    return {
        name: value
        for key, one in tree.items()
        for name, value in _flat(one, f"{above}{key}.").items()
    }


def _differences(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Options that are not the same in all runs; `output` never is."""
    names = dict.fromkeys(name for run in runs for name in run.config if name != "output")
    rows = [(name, [_text(run.config.get(name)) for run in runs]) for name in names]
    differing = [(name, _short(values)) for name, values in rows if len(set(values)) > 1]
    if (more := len(differing) - MOST_DIFFERENCES) > 0:
        differing[MOST_DIFFERENCES:] = [(f"and {more:,} more", [""] * len(runs))]
    return differing


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _short(values: Sequence[str]) -> list[str]:
    """Each from a little before where they begin to differ, where one is too long."""
    if max(map(len, values)) <= MOST_VALUE:
        return list(values)
    start = max(0, len(os.path.commonprefix(list(values))) - MOST_VALUE // 2)
    shown = [f"{'…' if start else ''}{value[start:]}" for value in values]
    return [one if len(one) <= MOST_VALUE else f"{one[: MOST_VALUE - 1]}…" for one in shown]


def _table(runs: Sequence[Compared]) -> list[tuple[str, list[Line]]]:
    """By section, whose titles differ between runs in the number of people alone."""
    found: dict[str, dict[str, list[Row | None]]] = defaultdict(dict)
    for i, run in enumerate(runs):
        for section in sections(run.results) + others(run.results):
            title = re.sub(r" \([\d,]+\)$", "", section.title)
            for row in section.rows:
                cells = found[title].setdefault(row.label, [None] * len(runs))
                cells[i] = row
    return [
        (title, [Line(label, cells) for label, cells in lines.items()])
        for title, lines in found.items()
    ]


def _over_steps(runs: Sequence[Compared]) -> list[Figure]:
    """The attack while something else was trained: relearning, cleansing, or the forgetting."""
    lines: dict[str, dict[str, Points]] = defaultdict(dict)
    for run in runs:
        curves = read_curves(run.folder, run.results.names)
        for group in attacked(run.results):
            points = curves.measured.get(f"{group.path}/tpr", [])
            if len(points) >= ON_THE_WAY:
                title = f"{group.title}: found by {group.prompts(1)} or more"
                lines[title][run.name] = points
    return [chart(title, some, percent, top=1.0) for title, some in lines.items()]


def _over_people(runs: Sequence[Compared]) -> list[Figure]:
    """After forgetting more and more; of one recipe there may be several runs of as many people,
    say of other seeds."""
    found: dict[str, Points] = defaultdict(list)
    first_of = {_recipe(run): run.name for run in reversed(runs)}
    for run in runs:
        like = f", as {first_of[_recipe(run)]}" if len(first_of) > 1 else ""
        for group in attacked(run.results):
            _, after = run.results.pair(f"{group.path}/tpr")
            if after is not None and run.results.identities:
                found[f"{group.title}{like}"].append((run.results.identities, after))
    lines = {
        title: sorted(points)
        for title, points in found.items()
        if len({people for people, _ in points}) > 1
    }
    title = "Found by 1 prompt or more, after"
    return [chart(title, lines, percent, top=1.0, x="people to forget")] if lines else []


def _recipe(run: Compared) -> str:
    """What is taught and how: not to whom, which paths tell, nor for how long."""
    counts = {
        name: value
        for name, value in run.config.items()
        if name.startswith(("objectives.", "optimizer.", "model.freeze"))
        and name != "optimizer.milestones"
        and os.sep not in str(value)
    }
    return json.dumps(counts, sort_keys=True, default=str)
