"""Does an objective's loss keep its contract: on a step, and on what a rank may have of one?"""

from __future__ import annotations

import re
from random import Random
from typing import Any

import torch
from torch import Tensor

from trainer.api import LossFn, Objective, Pair, Tower
from trainer.testing.fakes import FakeEncoder, embeddings_of, part_of, rows_of

PLACES = [(model, tower) for model in ("student", "teacher") for tower in Tower]


def check_losses(objective: Objective, pairs: list[Pair], seed: int) -> None:
    """On a whole step, and on each sort of row alone, which may be all that a rank has."""
    size = objective.options.batch_size
    loss_fn = objective.loss_fn(FakeEncoder(seed))
    assert callable(loss_fn), f"{type(objective).__name__}.loss_fn gives {loss_fn!r}; a function"
    whole = _check_loss(objective, loss_fn, pairs[:size], "a whole step")
    sorts: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        present = tuple(part_of(pair, *place) is not None for place in PLACES)
        sorts.setdefault((present, pair.label), []).append(pair)
    for rows in list(sorts.values())[:16]:
        seen = ", ".join(
            f"{model}_{tower.value}"
            for model, tower in PLACES
            if part_of(rows[0], model, tower) is not None
        )
        for some in (rows[:size], rows[:1]):
            what = f"{len(some)} rows of {seen} labelled {rows[0].label}, as a rank may have alone"
            terms = _check_loss(objective, loss_fn, some, what)
            assert terms == whole, (
                f"{type(objective).__name__}'s loss has the terms {listed(terms)} on {what}, but "
                f"{listed(whole)} on a whole step; give all on every rank, 0 where there is none"
            )


def _check_loss(objective: Objective, loss_fn: LossFn, pairs: list[Pair], what: str) -> set[str]:
    """The names of its terms."""
    name = f"{type(objective).__name__}'s loss"
    scale = torch.tensor(10.0, requires_grad=True)
    student = embeddings_of(pairs, "student", Random(1), scale)
    teacher = embeddings_of(pairs, "teacher", Random(2), scale.detach())
    before = [one.detach().clone() for one in (*rows_of(student), *rows_of(teacher))]
    try:
        losses = loss_fn(student, teacher)
    except Exception as error:  # whatever a plugin stumbles over
        raise AssertionError(
            f"{name} raises {type(error).__name__}: {error} on {what}; rows that are absent make "
            "an embedding None"
        ) from error
    assert isinstance(losses, dict) and losses, f"{name} gives {losses!r}; {{term: scalar}}"
    for term, value in losses.items():
        assert isinstance(term, str) and re.fullmatch(r"[^\s/]+", term), (
            f"{name} has a term named {term!r}; a word without spaces or /"
        )
        assert isinstance(value, Tensor) and value.ndim == 0, (
            f"{name} gives {value!r} as {term} on {what}; a scalar tensor"
        )
        assert value.isfinite(), f"{name} gives {value.item()} as {term} on {what}"
    total = sum(losses.values())
    assert isinstance(total, Tensor) and total.requires_grad, (
        f"{name} gives no gradient on {what}; compute it from the student's embeddings"
    )
    total.backward()
    for tower, rows in ((Tower.TEXT, student.text), (Tower.IMAGE, student.image)):
        assert rows is None or rows.grad is not None, (
            f"{name} does not reach the student's {tower.value} embeddings on {what}; use them, or "
            "leave them out of the pairs"
        )
        assert rows is None or rows.grad is None or rows.grad.isfinite().all(), (
            f"{name} gives a gradient that is not finite to the {tower.value} embeddings on {what}"
        )
    assert scale.grad is not None or not objective.trains_temperature, (
        f"{name} does not reach logit_scale; use it, or leave trains_temperature False"
    )
    for rows in rows_of(teacher):
        assert not rows.requires_grad and rows.grad is None, (
            f"{name} asks for a gradient of the teacher, which is frozen; do not touch it"
        )
    for rows, old in zip((*rows_of(student), *rows_of(teacher)), before):
        assert torch.equal(rows.detach(), old), f"{name} changes embeddings in place; copy them"
    return set(losses)


def listed(items: Any) -> str:
    return ", ".join(sorted(item.value if isinstance(item, Tower) else item for item in items))
