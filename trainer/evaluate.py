"""Run the evaluations that a configuration names, in training or alone."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.api import Encoder, Evaluation

Measures = dict[str, float | list[float]]


def measure(evaluations: Mapping[str, Evaluation], student: Encoder, teacher: Encoder) -> Measures:
    """Every measure by its full name: `zero_shot/colour/accuracy` for a zero_shot named colour."""
    return {
        f"{prefix(name, evaluation)}/{measure}": value
        for name, evaluation in evaluations.items()
        for measure, value in evaluation.run(student, teacher)
    }


def prefix(name: str, evaluation: Evaluation) -> str:
    return evaluation.kind if name == evaluation.kind else f"{evaluation.kind}/{name}"


def due(evaluations: Mapping[str, Evaluation], step: int) -> dict[str, Evaluation]:
    return {
        name: evaluation
        for name, evaluation in evaluations.items()
        if evaluation.options.every and step % evaluation.options.every == 0
    }


def scalars(measures: Measures) -> dict[str, float]:
    """What a tracker can draw."""
    return {name: value for name, value in measures.items() if not isinstance(value, list)}
