"""Pictures of numbers, as SVG that stands in a page of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

from trainer.reports.words import share
from trainer.statistics import Estimate

Points = list[tuple[float, float]]  # (step, value)
MOST_POINTS = 150  # of one line; more would not be seen
FEW_POINTS = 15  # of one line; so few are marked

# Every picture is 340 wide, so that its letters keep their size on a phone; a class
# says what a mark is, and the style sheet of the page gives it a colour, light or dark.


class Figure(NamedTuple):
    title: str
    svg: Markup
    legend: list[str] = []  # names of the lines, in the order of their classes


def histogram_pair(title: str, before: Sequence[float], after: Sequence[float]) -> Markup:
    """People by the number of prompts that name them, before above after, on one scale."""
    most, slot, strip = max(*before, *after, 1), 332 / len(before), 64
    parts, told = [], []
    for moment, counts, base in (("before", before, 102), ("after", after, 208)):
        parts.append(_text(4, base - strip - 24, moment, css=f"strong {moment}-text"))
        parts.append(_line(4, base, 336, base, "axis"))
        for i, count in enumerate(counts):
            if not count:
                continue
            x, height = 4 + i * slot, max(1.5, strip * count / most)
            parts.append(
                Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>'
                ).format(x + slot * 0.1, base - height, slot * 0.8, height, moment)
            )
            if i == 0 or count == max(counts):
                parts.append(_text(x + slot / 2, base - height - 4, f"{count:g}", "middle"))
        told.append(f"{moment}, {counts[0]:g} of {sum(counts):g} people found by no prompt")
    last = len(before) - 1
    for prompts in sorted({0, last // 2, last}):
        parts.append(_text(4 + (prompts + 0.5) * slot, 224, str(prompts), "middle", "muted"))
    parts.append(_text(170, 240, "prompts that name the person; 0 is not found", "middle", "muted"))
    return _svg(246, f"{title}: prompts won by each person; {'; '.join(told)}", parts)


def dumbbell(title: str, rows: Sequence[tuple[str, float, float]]) -> Markup:
    """Each row, (label, before, after), from its share before (a ring) to that after (a disc).

    An `Estimate` has its interval drawn through it.
    """
    return _spans(title, rows, share, ("0 %", "50 %", "100 %"))


def areas(title: str, rows: Sequence[tuple[str, float, float]]) -> Markup:
    """The same of areas under a curve, with a mark at 0.5, where nothing can be told."""
    return _spans(title, rows, "{:.2f}".format, ("0", "0.5", "1"), has_middle=True)


def _spans(
    title: str,
    rows: Sequence[tuple[str, float, float]],
    written: Callable[[float], str],
    ticks: tuple[str, str, str],
    has_middle: bool = False,
) -> Markup:
    left, right, parts, told = 12, 192, [], []

    def place(value: float) -> float:
        return left + min(max(value, 0.0), 1.0) * (right - left)

    bottom = 34 + 46 * len(rows) - 36
    if has_middle:
        parts.append(_line(place(0.5), 8, place(0.5), bottom, "middle-line"))
    for i, (label, before, after) in enumerate(rows):
        y = 34 + 46 * i
        parts += [
            _text(4, y - 16, label, css="halo"),
            _line(left, y, right, y, "grid"),
            *(_line(x, y - 4, x, y + 4, "grid") for x in (left, (left + right) / 2, right)),
        ]
        for value, css, shift in (
            (before, "before-interval", -2.5),
            (after, "after-interval", 2.5),
        ):
            if isinstance(value, Estimate):
                ends = place(value.low), place(value.high)
                parts.append(_line(ends[0], y + shift, ends[1], y + shift, css))
        parts += [
            _line(place(before), y, place(after), y, "span"),
            Markup('<circle cx="{:.1f}" cy="{}" r="7" class="ring"/>').format(place(before), y),
            Markup('<circle cx="{:.1f}" cy="{}" r="4" class="after"/>').format(place(after), y),
            _text(336, y + 4, f"{written(before)} → {written(after)}", "end", "strong"),
        ]
        told.append(f"{label} {written(before)} before, {written(after)} after")
    y = 34 + 46 * len(rows) - 20
    anchors = ((4, "start"), ((left + right) / 2, "middle"), (right, "middle"))
    for (x, anchor), tick in zip(anchors, ticks):
        parts.append(_text(x, y, tick, anchor, "muted"))
    return _svg(y + 8, f"{title}: {'; '.join(told)}", parts)


def roc(title: str, lines: Mapping[str, Sequence[float]]) -> Figure:
    """How many of those that are sought a score tells, by how many others it takes for them: both
    as shares, the others' in equal steps from 0 to 1. The diagonal is chance."""

    def place(along: float, up: float) -> tuple[float, float]:
        return 46 + 282 * along, 296 - 282 * up

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, tick)
        parts += [_line(46, y, 328, y, "grid"), _text(40, y + 4, f"{tick:.0%}", "end", "muted")]
    for tick, anchor in ((0.0, "middle"), (1.0, "end")):
        parts.append(_text(place(tick, 0)[0], 314, f"{tick:.0%}", anchor, "muted"))
    parts.append(_text(187, 314, "of the never known", "middle", "muted"))
    parts.append(_line(*place(0, 0), *place(1, 1), "axis"))
    for i, shares in enumerate(lines.values()):
        places = [place(step / (len(shares) - 1), one) for step, one in enumerate(shares)]
        path = " ".join("{:.1f},{:.1f}".format(*one) for one in places)
        parts.append(Markup('<polyline points="{}" class="line s{}"/>').format(path, i % 6))
    told = "; ".join(
        f"{name} tells {s[len(s) // 10]:.0%} where one in ten is wrong" for name, s in lines.items()
    )
    return Figure(title, _svg(322, f"{title}: {told}", parts), list(lines))


def chart(
    title: str, lines: Mapping[str, Points], label: Callable, top: float = 0.0, x: str = "steps"
) -> Figure:
    """Lines over steps, from zero or the lowest value up; label: writes a tick of the y axis.

    x: what is counted along the other axis. Steps begin at 0; what else is counted may grow by
    doubling, and is drawn by its logarithm. Of points at one count, the line joins the mean.
    """
    values = [value for points in lines.values() for _, value in points]
    ticks = _ticks(min(0.0, *values), max(top, *values))
    counts = sorted({count for points in lines.values() for count, _ in points})
    first, last = (0.0, counts[-1]) if x == "steps" else (counts[0], counts[-1])
    scale: Callable[[float], float] = float if x == "steps" else math.log2
    width = scale(last) - scale(first) or 1.0
    low, high = ticks[0], ticks[-1]

    def place(count: float, value: float) -> tuple[float, float]:
        along = (scale(count) - scale(first)) / width
        return 46 + 282 * along, 168 - 154 * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        _, y = place(first, tick)
        parts += [_line(46, y, 328, y, "grid"), _text(40, y + 4, label(tick), "end", "muted")]
    for count, anchor in ((first, "middle"), (last, "end")):
        if count != first or anchor == "middle":
            parts.append(_text(place(count, 0)[0], 186, f"{count:,.0f}", anchor, "muted"))
    parts.append(_text(187, 186, x, "middle", "muted"))
    means = {name: _means(points) for name, points in lines.items()}
    for i, (name, points) in enumerate(lines.items()):
        joined = [place(*point) for point in _thinned(means[name])]
        path = " ".join("{:.1f},{:.1f}".format(*one) for one in joined)
        parts.append(Markup('<polyline points="{}" class="line s{}"/>').format(path, i % 6))
        if len(points) <= FEW_POINTS:
            parts += [
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="dot d{}"/>').format(
                    *place(*point), i % 6
                )
                for point in points
            ]
    told = "; ".join(f"{name} from {p[0][1]:.3g} to {p[-1][1]:.3g}" for name, p in means.items())
    return Figure(title, _svg(194, f"{title}, over {last:,.0f} {x}: {told}", parts), list(lines))


def _means(points: Points) -> Points:
    """One at each count, in their order."""
    values: dict[float, list[float]] = {}
    for count, value in points:
        values.setdefault(count, []).append(value)
    return [(count, fmean(own)) for count, own in values.items()]


def _thinned(points: Points) -> Points:
    """At most `MOST_POINTS`, each the mean of as many neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose both."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4.001)
    first, last = math.floor(low / step), math.ceil((low + span) / step - 1e-9)
    return [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def _svg(height: float, title: str, parts: Iterable[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 340 {:g}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(height, title, title, Markup("").join(parts))


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, css
    )
