"""What evaluations find: numbers, histograms, and rows of single people that leave no run's folder.

A number may be an `Estimate`. All of it goes through JSON and back (`packed`, `unpacked`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from trainer.statistics import Cases, Estimate, paired_change


class Rows(list[dict[str, Any]]):
    """What is measured of single people: a dict of JSON values for each.

    `identity`, a pseudonym, says of whom, and `group`, where it has one, in which group.
    """


Measure = float | list[float] | Rows  # a list is a histogram
Measures = dict[str, Measure]  # by full name


def complaint(value: Any) -> str | None:
    """Why it is no measure, to go on after "as". Not whether its numbers are finite."""
    if not isinstance(value, Rows):
        each = value if isinstance(value, list) else [value]
        wrong = [type(one).__name__ for one in each if not isinstance(one, float)]
        return f"{wrong[0]}; a float, or a list of floats" if wrong else None
    if not all(isinstance(row, dict) and isinstance(row.get("identity"), str) for row in value):
        return "Rows without an `identity`; a dict with a pseudonym for each person"
    if not all(isinstance(row.get("group", ""), str) for row in value):
        return "Rows with a `group` that is no word"
    if len({(row["identity"], row.get("group")) for row in value}) < len(value):
        return "Rows with one person twice; a row for each, in each `group`"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"Rows with what JSON cannot hold: {error}; give Python's own finite numbers"
    return None


def without_people(measures: Mapping[str, Measure]) -> dict[str, float | list[float]]:
    """The plain numbers and histograms: what may be logged."""
    return {
        name: float(value) if isinstance(value, Estimate) else value
        for name, value in measures.items()
        if not isinstance(value, Rows)
    }


def intervals(measures: Mapping[str, Measure]) -> dict[str, tuple[float, float]]:
    """(low, high) of each measure that has a finite one."""
    return {
        name: (value.low, value.high)
        for name, value in measures.items()
        if isinstance(value, Estimate) and math.isfinite(value.low + value.high)
    }


def changes(before: Measures, after: Measures) -> dict[str, tuple[float, float]]:
    """(low, high) of after - before, of each measure that both moments took of the same cases."""
    earlier = _cases(before)
    paired = {
        name: paired_change(earlier[name], own)
        for name, own in _cases(after).items()
        if name in earlier
    }
    return {name: (one.low, one.high) for name, one in paired.items() if one is not None}


def _cases(measures: Measures) -> dict[str, Cases]:
    return {
        name: one.cases for name, one in measures.items() if isinstance(one, Estimate) and one.cases
    }


def people(before: Measures, after: Measures) -> list[dict[str, Any]]:
    """A row for each person and measure: whose it is, and the values of both moments."""
    found: dict[tuple, dict[str, Any]] = {}
    for moment, measures in (("before", before), ("after", after)):
        for name, rows in measures.items():
            if not isinstance(rows, Rows):
                continue
            for values in map(dict, rows):
                keys = [key for key in ("identity", "group") if key in values]
                whose: dict[str, Any] = {"measure": name} | {key: values.pop(key) for key in keys}
                found.setdefault(tuple(whose.values()), whose)[moment] = values
    return list(found.values())


def packed(measures: Measures) -> dict[str, Any]:
    """As JSON can hold it without losing what kind of measure each is."""
    return {name: _packed(value) for name, value in measures.items()}


def _packed(value: Measure) -> Any:
    if isinstance(value, Rows):
        return {"rows": list(value)}
    if isinstance(value, Estimate):
        numbers = {"value": float(value), "low": value.low, "high": value.high}
        return numbers if value.cases is None else numbers | {"cases": list(value.cases)}
    return value


def unpacked(stored: Mapping[str, Any]) -> Measures:
    """What was packed; plain numbers and histograms stay what they are."""
    return {name: _unpacked(value) for name, value in stored.items()}


def _unpacked(value: Any) -> Measure:
    if not isinstance(value, dict):
        return value
    if "rows" in value:
        return Rows(value["rows"])
    cases = {"cases": Cases(*value["cases"])} if "cases" in value else {}
    return Estimate(**value | cases)
