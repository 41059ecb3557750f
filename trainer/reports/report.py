"""What one run forgot and kept, by these attacks: a table and a self-contained page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trainer.reports.charts import Figure, areas, dumbbell, histogram_pair, roc
from trainer.reports.curves import found_charts, loss_charts, read_curves, watch_charts
from trainer.reports.findings import (
    AREAS,
    LIMITS,
    Row,
    Section,
    harmonic_mean,
    kept,
    others,
    sections,
    tasks,
    verdict,
)
from trainer.reports.groups import Group, attacked, of_one_attack, prompts
from trainer.reports.noninferiority import NOT_WORSE, OPEN, WORSE, Judgement, in_words, judged
from trainer.reports.page import interval, write_page, written
from trainer.reports.results import Results, read_results
from trainer.reports.words import count_people, count_points, duration, last_part, share, spoken
from trainer.reports.worst_off import read_people, worst_off
from trainer.system.addresses import shown

REPORT = "report.html"
TABLE_COLUMNS = 88
BAD_SHARDS = 20  # that are named
WORST_OFF = 10  # people who are listed
ROWS_IN_TERMINAL = 6  # of an evaluation that the table has no words of its own for
CONFIG_CHARACTERS = 60_000  # of a longer one the page shows the beginning
COLOURS = {NOT_WORSE: "good", WORSE: "bad", OPEN: "open"}


class Tile(NamedTuple):
    """One figure of the first glance."""

    title: str
    figure: str
    detail: str
    colour: str = ""


def write_report(run: Path, path: Path | None = None, shows_people: bool = False) -> Path:
    """Write REPORT from the results, metrics and configuration in a run's folder.

    shows_people: the pseudonyms of those who were harmed; without, the page has no person in it.
    """
    results = read_results(run)
    config = _shown((run / "config.yaml").read_text(encoding="utf-8"))
    curves = read_curves(run, results.names, [one.evaluation for one in results.failures])
    groups = attacked(results)
    rest = others(results)
    judgements = judged(results)
    harmed = worst_off(read_people(run), groups)
    return write_page(
        path or run / REPORT,
        "report.html.jinja",
        name=run.resolve().name,
        results=results,
        verdict=verdict(results),
        kept=kept(results, groups),
        limits=LIMITS,
        tiles=_tiles(results, groups, judgements),
        sections=sections(results),
        judgements=judgements,
        colours=COLOURS,
        rest=rest,
        leakage=_leakage_chart(results),
        dumbbells=_dumbbells(results, groups),
        in_one_figure=harmonic_mean(results),
        has_intervals=any(results.intervals.values()),
        histograms=_histograms(results, groups),
        harmed=harmed[:WORST_OFF],
        num_harmed=len(harmed),
        shows_people=shows_people,
        found=found_charts(curves.measured, groups),
        losses=loss_charts(curves.losses),
        watched=watch_charts(curves.watched),
        skipped=sorted(results.skipped.items(), key=lambda item: -item[1]),
        bad_shards=_bad_shards(results),
        failures=results.failures,
        config=config[:CONFIG_CHARACTERS],
        is_cut=len(config) > CONFIG_CHARACTERS,
        again=_commands(run, results.steps),
    )


def summary(raw: Mapping[str, Any]) -> str:
    """The table before/after for a terminal, at most 90 columns wide."""
    results = Results.of(raw)
    width = TABLE_COLUMNS - 32
    rule = "─" * TABLE_COLUMNS
    found = sections(results) + others(results)
    lines = [f"{'':{width}}{'before':>9}   {'after':>7}   wanted", rule] if found else []
    attacks_and_tasks = len(sections(results))
    for i, section in enumerate(found):
        lines.append(_fit(section.title, TABLE_COLUMNS))
        rows = section.rows if i < attacks_and_tasks else section.rows[:ROWS_IN_TERMINAL]
        for row in rows:
            before, after = written(row.before, row.is_share), written(row.after, row.is_share)
            label = _fit(f"  {row.label}", width)
            lines.append(f"{label:{width}}{before:>9} → {after:>7}   {row.wanted}".rstrip())
        if more := len(section.rows) - len(rows):
            lines.append(f"  and {more} more in the report")
    took = f"{results.steps_in_words} in {duration(results.seconds['total'])}"
    if "train" in results.seconds:
        took += f", {duration(results.seconds['train'])} of it training"
    counts = sorted(results.skipped.items(), key=lambda item: -item[1])
    skipped = ", ".join(f"{count:,} for {reason}" for reason, count in counts)
    worst = _bad_shards(results)
    return "\n".join(
        [
            *lines,
            *([rule] if found else []),
            *_wrap(verdict(results)),
            *_wrap(in_words(judged(results), results.margin)),
            *_wrap(LIMITS),
            *_wrap(results.failures_in_words),
            *_wrap(f"{took}." + (f" Samples skipped: {skipped}." if skipped else "")),
            *(f"  {count:,} {reason} in {shard}" for shard, reason, count in worst[:5]),
        ]
    )


def _shown(config: str) -> str:
    """A configuration for others to read: no comments, and addresses without their secrets."""
    try:
        events = list(yaml.parse(config, yaml.SafeLoader))
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                event.value = shown(event.value)
        return yaml.emit(events, allow_unicode=True)
    except yaml.YAMLError:
        return "config.yaml is no YAML; it may hold passwords and is not shown"


def _tiles(
    results: Results, groups: Sequence[Group], judgements: Sequence[Judgement]
) -> list[Tile]:
    """For who has a minute."""
    tiles = []
    by_name = of_one_attack(results, groups)
    for name, title, is_kept in (
        ("forget", "People to forget who are found", False),
        ("unseen", "People to keep who are found", True),
        ("unknown", "Strangers who are found by mistake", False),
    ):
        if name not in by_name:
            continue
        group = by_name[name]
        majority = group.majority if is_kept and group.majority else 1
        before, after = results.pair(f"{group.path}/tpr{f'_{majority}' if majority > 1 else ''}")
        detail = f"by {group.prompts(majority)} or more"
        if people := results.count(f"{group.path}/people"):
            detail += f", of {count_people(people)}"
        if range_ := interval(after):
            detail += f"; after: {range_} % with 95 % confidence"
        tiles.append(Tile(title, f"{share(before)} → {share(after)}", detail))
    if judgements:
        verdicts = [one.verdict for one in judgements]
        worst = next(one for one in (WORSE, OPEN, NOT_WORSE) if one in verdicts)
        detail = f"{verdicts.count(worst)} of {len(judgements)} measures, "
        detail += f"with a margin of {count_points(results.margin)}"
        tiles.append(Tile("Ordinary tasks, beside before", worst, detail, COLOURS[worst]))
    for name in results.names:
        if matched := re.fullmatch(r"leakage(/[^/]+)?/auc", name):
            _, after = results.pair(name)
            detail = "0.5: these scores of the model alone tell nothing; 1: they tell everybody"
            if range_ := interval(after, is_share=False):
                detail += f". 95 % interval {range_}"
            _, chance = results.pair(f"{name}_by_chance")
            if chance is not None:
                detail += f"; of the most telling score: up to {written(chance, False)} by chance"
            _, with_original = results.pair(f"{name}_with_original")
            if with_original is not None:
                detail += f". Who also holds the original: {written(with_original, False)}"
            title = "Forget list in the model" + spoken(matched[1] or "")
            tiles.append(Tile(title, written(after, False), detail))
    return tiles


def _bad_shards(results: Results) -> list[tuple[str, str, int]]:
    """Base name, reason and count, of the shards with most bad samples first."""
    return [
        (last_part(shard), reason, count)
        for shard, reasons in results.bad_shards.items()
        for reason, count in reasons.items()
    ][:BAD_SHARDS]


def _fit(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def _wrap(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= TABLE_COLUMNS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if text else []


def _commands(run: Path, steps: int) -> list[str]:
    # Copied first: a new run under the same name sets the old folder aside.
    copy = f"cp {shlex.quote(str(run / 'config.yaml'))} again.yaml"
    if not steps:
        return [copy, "clip-unlearn evaluate again.yaml --checkpoint FILE"]
    return [copy, "clip-unlearn train again.yaml output=runs/again"]


def _histograms(results: Results, groups: Iterable[Group]) -> list[Figure]:
    figures = []
    for group in groups:
        name = f"{group.path}/prompts_won"
        won = [of.get(name) or [] for of in (results.before, results.after)]
        if won[0] and len(won[0]) == len(won[1]):
            figures.append(Figure(group.title, histogram_pair(group.title, *won)))
    return figures


def _dumbbells(results: Results, groups: Sequence[Group]) -> list[Figure]:
    def of(measure: str, some: Iterable[Group]) -> list[Row]:
        return [Row(group.title, *results.pair(f"{group.path}/{measure}")) for group in some]

    pictures = []
    for majority in sorted({group.majority for group in groups if group.majority}):
        some = [group for group in groups if group.majority == majority]
        title = f"Found by {prompts(majority, some)} or more"
        pictures.append(Section(title, of(f"tpr_{majority}", some)))
    pictures.append(Section("Found by 1 prompt or more", of("tpr", groups)))
    pictures += tasks(results)
    return [
        Figure(title, dumbbell(title, both)) for title, rows in pictures if (both := _both(rows))
    ]


def _leakage_chart(results: Results) -> list[Figure]:
    rows = [
        Row(spoken(name.partition("/")[2]), *results.pair(name))
        for name in results.names
        if re.fullmatch(AREAS, name)
    ]
    title = "Area under the curve of each score"
    both = _both(rows)
    return ([Figure(title, areas(title, both))] if both else []) + _roc_curves(results)


def _roc_curves(results: Results) -> list[Figure]:
    """After the run; a picture for the names and one for the pictures of each evaluation."""
    lines: dict[str, dict[str, Sequence[float]]] = {}
    for name, curve in results.after.items():
        if matched := re.fullmatch(r"leakage(/[^/]+)?/(text|image)/(\w+)_roc", name):
            attacker, side, score = matched.groups()
            of = {"text": "names", "image": "pictures"}[side] + (attacker or "").replace("/", ", ")
            lines.setdefault(f"Forgotten told by their {of}", {})[spoken(score)] = curve
    return [roc(title, some) for title, some in lines.items()]


def _both(rows: Iterable[Row]) -> list[tuple[str, float, float]]:
    return [
        (row.label, row.before, row.after)
        for row in rows
        if row.before is not None and row.after is not None
    ]
