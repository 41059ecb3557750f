"""`results.json`, the numbers of a finished run, with their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.statistics import Estimate

Measures = Mapping[str, Any]  # by full name: a float, or a list where it is a histogram


def path_of(name: str, kind: str) -> str:
    """What the measures of an evaluation begin with: zero_shot/colour for a zero_shot of that name;
    the kind alone where it is the name."""
    return kind if name == kind else f"{kind}/{name}"


class Failure(NamedTuple):
    """An evaluation that gave nothing, at each of these steps for the same cause."""

    evaluation: str
    steps: list[int]
    cause: str


@dataclass(frozen=True)
class Results:
    """Rates are between 0 and 1; `intervals` are by moment, then measure: (low, high).

    changes: the interval of after - before, of each rate that both moments took of the same cases.
    What has a default, older runs have not written.
    """

    before: Measures
    after: Measures
    seconds: Mapping[str, float]
    steps: int
    identities: int
    skipped: Mapping[str, int]
    bad_shards: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    changes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    resumed_at: int = (
        0  # the step after which the last start went on; its seconds are all there are
    )
    margin: float = 0.01  # of a task, up to which less counts as not worse
    code: Mapping[str, str | None] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    failed: Sequence[Mapping[str, Any]] = ()  # evaluation, step and cause of each that gave nothing

    @staticmethod
    def of(raw: Mapping[str, Any]) -> Results:
        """What it does not know it leaves: later versions may write more."""
        known = Results.__dataclass_fields__
        return Results(**{name: value for name, value in raw.items() if name in known})

    def pair(self, measure: str) -> tuple[float | None, float | None]:
        """Before and after; an `Estimate` where the interval is known."""
        return self._value("before", measure), self._value("after", measure)

    def change(self, measure: str) -> Estimate | None:
        """after - before, where its interval is known."""
        before, after = self.pair(measure)
        if measure not in self.changes or before is None or after is None:
            return None
        low, high = self.changes[measure]
        return Estimate(after - before, low, high)

    def count(self, measure: str) -> float | None:
        return self.after.get(measure, self.before.get(measure))

    @property
    def steps_in_words(self) -> str:
        """Of those that `seconds` are of."""
        if not self.resumed_at:
            return f"{self.steps:,} steps"
        return f"{self.steps - self.resumed_at:,} of {self.steps:,} steps (since it was resumed)"

    @property
    def failures(self) -> list[Failure]:
        found: dict[tuple[str, str], list[int]] = {}
        for one in self.failed:
            found.setdefault((one["evaluation"], one["cause"]), []).append(one["step"])
        return [Failure(name, steps, cause) for (name, cause), steps in found.items()]

    @property
    def failures_in_words(self) -> str:
        """One sentence, empty where nothing failed."""
        told = "; ".join(
            f"{name} at step {', '.join(map(str, steps))}: {cause}"
            for name, steps, cause in self.failures
        )
        return f"Failed, and not measured then: {told}." if told else ""

    @property
    def names(self) -> dict[str, None]:
        """Of all measures, before or after, in their order."""
        return dict.fromkeys([*self.before, *self.after])

    def _value(self, moment: str, measure: str) -> float | None:
        value = (self.before if moment == "before" else self.after).get(measure)
        if value is None or isinstance(value, list):
            return None
        interval = self.intervals.get(moment, {}).get(measure)
        if interval is None or None in interval or not all(map(math.isfinite, interval)):
            return value
        low, high = interval
        return Estimate(value, low, high)


def read_results(run: Path) -> Results:
    """Raises FileNotFoundError and ValueError where the folder is not of a finished run."""
    path = run / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; name the folder of a finished run")
    try:
        return Results.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no run's results ({error}); run it again") from None
