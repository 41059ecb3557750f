"""What was forgotten and what was kept, by these attacks: a table and a self-contained page."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.charts import Figure, Points, chart, dumbbell, histogram_pair, share

Measures = Mapping[str, Any]

TABLE_COLUMNS = 88
BAD_SHARDS = 20  # that are named
NO_LINES = ("step", "seconds", "bad_samples")  # of a row of metrics: neither measures nor losses
CONFIG_CHARACTERS = 60_000  # of a longer one the page shows the beginning
LOW, SAME, NONE = "low", "as before", ""
GROUPS = {  # name in the results: what it is called here, what the run wants of it
    "forget": ("People to forget", LOW),
    "replayed": ("People to keep, replayed in training", SAME),
    "unseen": ("People to keep, unseen in training", SAME),
    "unknown": ("People it never learnt", LOW),
}
LIMITS = (
    "Measured by these attacks alone: another attack may still find someone. "
    "Low figures are evidence, not a guarantee."
)


@dataclass(frozen=True)
class Group:
    """One group of people under attack; `path` leads to its measures."""

    path: str
    title: str
    wanted: str
    majority: int | None  # the prompts of the `tpr_11` among its measures
    num_prompts: int | None

    def prompts(self, count: int) -> str:
        return f"{count} of {self.num_prompts} prompts" if self.num_prompts else f"{count} prompts"


class Row(NamedTuple):
    label: str
    before: float | None  # a share, None where it was not measured
    after: float | None
    wanted: str


class Section(NamedTuple):
    title: str
    rows: list[Row]


def write_report(folder: Path) -> Path:
    """Write `report.html` from the results, metrics and configuration in a run's folder."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    before, after = results["before"], results["after"]
    metrics = folder / "metrics.jsonl"  # an evaluation without training writes none
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    found, losses = _over_steps([json.loads(line) for line in lines], before.keys() | after.keys())
    groups = attacked(before | after)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        verdict=verdict(results),
        kept=_kept(results, groups),
        limits=LIMITS,
        sections=sections(results),
        share=share,
        histograms=_histograms(before, after, groups),
        dumbbells=_dumbbells(before, after, groups),
        found=_found_charts(found, groups),
        losses=[chart(title, lines, "{:g}".format) for title, lines in losses.items()],
        seconds=results["seconds"],
        duration=duration,
        count_people=count_people,
        steps=results["steps"],
        identities=results["identities"],
        skipped=sorted(results["skipped"].items(), key=lambda item: -item[1]),
        bad_shards=_bad_shards(results),
        config=config[:CONFIG_CHARACTERS],
        is_cut=len(config) > CONFIG_CHARACTERS,
        again=_commands(folder, results["steps"]),
    )
    aside = folder / ".report.html.tmp"
    aside.write_text(page, encoding="utf-8")
    return aside.replace(folder / "report.html")


def _bad_shards(results: Measures) -> list[tuple[str, str, int]]:
    """Base name, reason and count, of the shards with most bad samples first."""
    return [
        (shard.rpartition("/")[2], reason, count)
        for shard, reasons in results["bad_shards"].items()
        for reason, count in reasons.items()
    ][:BAD_SHARDS]


def summary(results: Measures) -> str:
    """The table before/after for a terminal, at most 90 columns wide."""
    width = TABLE_COLUMNS - 32
    rule = "─" * TABLE_COLUMNS
    found = sections(results)
    lines = [f"{'':{width}}{'before':>9}   {'after':>7}   wanted", rule] if found else []
    for section in found:
        lines.append(_fit(section.title, TABLE_COLUMNS))
        for label, before, after, wanted in section.rows:
            shares = f"{share(before):>9} → {share(after):>7}"
            lines.append(f"{_fit(f'  {label}', width):{width}}{shares}   {wanted}".rstrip())
    seconds = results["seconds"]
    took = f"{results['steps']:,} steps in {duration(seconds['total'])}"
    if "train" in seconds:
        took += f", {duration(seconds['train'])} of it training"
    counts = sorted(results["skipped"].items(), key=lambda item: -item[1])
    skipped = ", ".join(f"{count:,} for {reason}" for reason, count in counts)
    worst = _bad_shards(results)
    return "\n".join(
        [
            *lines,
            *([rule] if found else []),
            *_wrap(verdict(results)),
            *_wrap(LIMITS),
            *_wrap(f"{took}." + (f" Samples skipped: {skipped}." if skipped else "")),
            *(f"  {count:,} {reason} in {shard}" for shard, reason, count in worst[:5]),
        ]
    )


def verdict(results: Measures) -> str:
    before, after = results["before"], results["after"]
    asked = results["identities"]
    groups = [group for group in attacked(before | after) if _name(group.path) == "forget"]
    if not groups:
        if not asked:
            return "Nobody was asked to be forgotten, and no attack on people to forget was run."
        return (
            f"{count_people(asked)} asked to be forgotten, and no attack was configured: "
            "nothing here says whether the model still knows them."
        )
    path = groups[0].path
    num_attacked = after.get(f"{path}/people", before.get(f"{path}/people"))
    found = [_people(measures, path) for measures in (before, after)]
    sentence = (
        f"Of {count_people(num_attacked)} asked to be forgotten, the identity inference attack "
        f"found {found[0]} before and {found[1]} after."
    )
    if num_attacked and asked > num_attacked:
        sentence += f" {asked:,} were asked for; only those with enough pictures can be attacked."
    return sentence


def sections(results: Measures) -> list[Section]:
    """What the table shows, in its order; what was not measured is left out."""
    before, after = results["before"], results["after"]
    found = []
    for group in attacked(before | after):
        is_stranger = _name(group.path) == "unknown"
        found_by = "found by mistake, by" if is_stranger else "found by the attack, by"
        measures = [("tpr", f"{found_by} {group.prompts(1)} or more")]
        if group.majority:
            most = f"found by {group.prompts(group.majority)} or more"
            measures.append((f"tpr_{group.majority}", most))
        measures += [
            ("held_out/tpr", "found by a prompt that training never used"),
            ("picture_accuracy", "pictures named right, among all names"),
            ("closed_set", "pictures named right, among the known names only"),
        ]
        rows = [
            Row(label, before.get(name), after.get(name), group.wanted)
            for name, label in ((f"{group.path}/{one}", label) for one, label in measures)
            if name in before or name in after
        ]
        people = after.get(f"{group.path}/people", before.get(f"{group.path}/people"))
        title = f"{group.title} ({people:,.0f})" if people else group.title
        found.append(Section(title, rows))
    if tasks := _tasks(before, after):
        found.append(Section("Ordinary tasks, pictures classified right", tasks))
    return found


def attacked(measures: Measures) -> list[Group]:
    """The groups of people that the measures tell of: to forget, to keep, never learnt, others."""
    groups = []
    for name in measures:
        matched = re.fullmatch(r"(identity_inference/.+)/tpr", name)
        if not matched or _name(matched[1]) == "held_out":
            continue
        path = matched[1]
        _, *between, last = path.split("/")
        title, wanted = GROUPS.get(last, (f"People of group {last}", NONE))
        won = measures.get(f"{path}/prompts_won")
        most = re.compile(re.escape(path) + r"/tpr_(\d+)")
        majority = next((int(hit[1]) for one in measures if (hit := most.fullmatch(one))), None)
        title = " ".join([title, *(f"({part})" for part in between)])
        groups.append(Group(path, title, wanted, majority, len(won) - 1 if won else None))
    order = [*GROUPS, NONE]
    return sorted(
        groups,
        key=lambda group: (
            group.path.count("/"),
            order.index(_name(group.path) if _name(group.path) in GROUPS else NONE),
        ),
    )


def count_people(number: float | None) -> str:
    if number is None:
        return "the people"
    return "1 person" if number == 1 else f"{number:,.0f} people"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _tasks(before: Measures, after: Measures) -> list[Row]:
    return [
        Row(matched[1] or "zero_shot", before.get(name), after.get(name), SAME)
        for name in {**before, **after}
        if (matched := re.fullmatch(r"zero_shot/(?:(.+)/)?accuracy", name))
    ]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _people(measures: Measures, path: str, at_least: int = 1) -> str:
    """How many people are found by that many prompts, for a sentence."""
    if won := measures.get(f"{path}/prompts_won"):
        return f"{sum(won[at_least:]):,.0f}"
    known = measures.get(f"{path}/tpr" if at_least == 1 else f"{path}/tpr_{at_least}")
    return "(not measured)" if known is None else share(known)


def _kept(results: Measures, groups: Iterable[Group]) -> str:
    """The honest test first: people that training never showed."""
    kept = {_name(group.path): group for group in groups if group.majority}
    for name, who in (("unseen", "that training never showed"), ("replayed", "")):
        if name in kept:
            group, most = kept[name], kept[name].majority or 1
            found = [_people(results[of], group.path, most) for of in ("before", "after")]
            people = count_people(results["after"].get(f"{group.path}/people"))
            return (
                f"Of {people} to keep {who}".strip()
                + f", it found {found[0]} before and {found[1]} after, "
                f"each by {group.prompts(most)} or more."
            )
    return ""


def _fit(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def _wrap(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= TABLE_COLUMNS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _commands(folder: Path, steps: int) -> list[str]:
    # Copied first: a new run under the same name sets the old folder aside.
    copy = f"cp {shlex.quote(str(folder / 'config.yaml'))} again.yaml"
    if not steps:
        return [copy, "clip-unlearn evaluate again.yaml --checkpoint FILE"]
    return [copy, "clip-unlearn train again.yaml output=runs/again"]


def _over_steps(
    rows: Iterable[Measures], measured: Iterable[str]
) -> tuple[dict[str, Points], dict[str, dict[str, Points]]]:
    """Evaluations by name; losses by objective, then term. Both share one file, row by row."""
    measured = set(measured)
    found: dict[str, Points] = defaultdict(list)
    losses: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row.items():
            if name in NO_LINES or isinstance(value, list) or not math.isfinite(value):
                continue
            if name in measured:
                found[name].append((row["step"], value))
            else:
                objective, _, term = name.partition("/")
                losses[objective][term or objective].append((row["step"], value))
    return found, losses


def _histograms(before: Measures, after: Measures, groups: Iterable[Group]) -> list[Figure]:
    figures = []
    for group in groups:
        won = [of.get(f"{group.path}/prompts_won") or [] for of in (before, after)]
        if won[0] and len(won[0]) == len(won[1]):
            figures.append(Figure(group.title, histogram_pair(group.title, *won)))
    return figures


def _dumbbells(before: Measures, after: Measures, groups: Sequence[Group]) -> list[Figure]:
    def figure(title: str, rows: list[Row]) -> list[Figure]:
        both = [
            (row.label, row.before, row.after)
            for row in rows
            if row.before is not None and row.after is not None
        ]
        return [Figure(title, dumbbell(title, both))] if both else []

    def of(measure: str, some: Iterable[Group]) -> list[Row]:
        names = [(group.title, f"{group.path}/{measure}") for group in some]
        return [Row(title, before.get(name), after.get(name), NONE) for title, name in names]

    figures = []
    for majority in sorted({group.majority for group in groups if group.majority}):
        some = [group for group in groups if group.majority == majority]
        figures += figure(
            f"Found by {some[0].prompts(majority)} or more", of(f"tpr_{majority}", some)
        )
    figures += figure("Found by 1 prompt or more", of("tpr", groups))
    return figures + figure("Ordinary tasks, pictures classified right", _tasks(before, after))


def _found_charts(found: Mapping[str, Points], groups: Sequence[Group]) -> list[Figure]:
    """Forgotten and kept over the steps; only where something was measured on the way."""
    figures = []
    measures = {f"tpr_{group.majority}": group.majority for group in groups if group.majority}
    for measure, at_least in {"tpr": 1, **measures}.items():
        lines = {
            group.title: found[f"{group.path}/{measure}"]
            for group in groups
            if len(found.get(f"{group.path}/{measure}", ())) > 2
        }
        if lines:
            title = f"Found by {groups[0].prompts(at_least)} or more"
            figures.append(chart(title, lines, lambda tick: f"{100 * tick:g} %", top=1.0))
    return figures
