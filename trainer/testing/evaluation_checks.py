"""Does an evaluation keep the contract in `trainer.api.Evaluation`?"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from trainer.api import Evaluation
from trainer.measures import Measure, Rows, complaint, packed
from trainer.testing.fakes import FakeEncoder
from trainer.testing.making import global_seeds, made

MEASURE = re.compile(r"[^\s/]+(/[^\s/]+)*")


def check_evaluation(cls: type[Evaluation], options: dict[str, Any], seed: int = 0) -> None:
    """Raises AssertionError telling what of the contract in `trainer.api.Evaluation` is broken."""
    name = cls.__name__
    evaluation = made(cls, Evaluation, options, seed)
    student, teacher = FakeEncoder(seed), FakeEncoder(seed + 1)
    with global_seeds(1):
        measures = _measured(evaluation, student, teacher)
    with global_seeds(2):
        again = _measured(evaluation, student, teacher)
        other = _measured(made(cls, Evaluation, options, seed), student, teacher)
    assert measures, f"{name}.run yields nothing; yield a (name, value) for each measure"
    for found, what in ((again, "run again"), (other, "made again with the same seed")):
        assert found == measures, (
            f"{name} gives other measures when {what}; draw from its seed, and keep no state "
            "between runs"
        )


def _measured(evaluation: Evaluation, student: FakeEncoder, teacher: FakeEncoder) -> dict:
    cls = type(evaluation).__name__
    measures: dict[str, Any] = {}
    for row in evaluation.run(student, teacher):
        assert isinstance(row, tuple) and len(row) == 2, (
            f"{cls}.run yields {row!r}; a (name, value)"
        )
        name, value = row
        assert isinstance(name, str) and MEASURE.fullmatch(name), (
            f"{cls}.run yields a measure named {name!r}; words without spaces, joined by /"
        )
        assert name not in measures, f"{cls}.run yields {name} twice; one value for each name"
        wrong = complaint(value)
        assert wrong is None, f"{cls}.run yields {name} as {wrong}"
        for one in _numbers(value):
            assert math.isfinite(one), f"{cls}.run yields {name} as {one}; leave out what is none"
        try:
            json.dumps(packed({name: value}))
        except (TypeError, ValueError) as error:
            raise AssertionError(
                f"{cls}.run yields {name} with what JSON cannot hold: {error}; give Python's own "
                "numbers, as int(...) and float(...) make them"
            ) from None
        measures[name] = value
    return measures


def _numbers(value: Measure) -> list[float]:
    """Rows of people are no numbers."""
    if isinstance(value, float):
        return [value]
    return [] if isinstance(value, Rows) else list(value)
