"""Counts, times and the names of measures as one says them."""

from __future__ import annotations


def count_people(number: float | None) -> str:
    if number is None:
        return "the people"
    return "1 person" if number == 1 else f"{number:,.0f} people"


def count_prompts(number: int, of: int | None = None) -> str:
    if of:
        return f"{number} of {of} prompts"
    return "1 prompt" if number == 1 else f"{number} prompts"


def share(value: float | None) -> str:
    """98.4 %. Of many people one is seldom .1 %, and "0.0 %" is for nobody."""
    if value is None:
        return "–"
    if 0 < value < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"


def count_points(share: float) -> str:
    return "1 point" if share == 0.01 else f"{100 * share:g} points"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def last_part(path: str) -> str:
    return path.rpartition("/")[2]


def spoken(path: str) -> str:
    """A measure's name as one would read it out: `text/closeness_auc`, "text · closeness auc"."""
    return path.replace("/", " · ").replace("_", " ")
