"""Does an objective keep the contract in `trainer.api.Objective`?"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import torch
from torch import Tensor

from trainer.api import BadSample, Objective, Pair, Sample, Tower
from trainer.testing.fakes import default_samples, part_of
from trainer.testing.loss_checks import check_losses, listed
from trainer.testing.making import global_seeds, made

NUM_STEPS = 2
LARGEST_LABEL = 2**63 - 1


def check_objective(
    cls: type[Objective],
    options: dict[str, Any],
    samples: Sequence[Sample] | None = None,
    seed: int = 0,
) -> None:
    """Raises AssertionError telling what of the contract in `trainer.api.Objective` is broken.

    samples: clean ones that suit it; without them, small pictures with captions.
    """
    objective = made(cls, Objective, options, seed)
    name = cls.__name__
    towers = objective.towers
    assert towers and towers <= cls.trains, (
        f"{name}.towers is {listed(towers)}; give some of its trains, {listed(cls.trains)}"
    )
    samples = default_samples() if samples is None else samples
    copy = _pickled(objective)
    turns = range(NUM_STEPS * objective.options.batch_size)
    with global_seeds(1):
        pairs = [_pair(objective, samples, turn, seed) for turn in turns]
    # Backwards and after another global seed: a pair may depend on neither.
    for other, what in (
        (copy, "a pickled copy"),
        (made(cls, Objective, options, seed), "another one of the same options and seed"),
    ):
        with global_seeds(2):
            again = [_pair(other, samples, turn, seed) for turn in reversed(turns)][::-1]
        for turn, (first, second) in enumerate(zip(pairs, again)):
            assert _same(first, second), (
                f"{name}.pair gives another pair at turn {turn} from {what}, called in another "
                "order; draw only from `rng` and keep no state between calls"
            )
    for turn, pair in enumerate(pairs):
        _check_pair(name, pair, turn, towers)
    for tower in towers:
        assert any(part_of(pair, "student", tower) is not None for pair in pairs), (
            f"{name}.towers has {tower.value}, but no pair has a student_{tower.value}; a tower "
            "that is trained without rows stops a distributed run: give rows or fewer towers"
        )
    if objective.num_identities:
        assert isinstance(vars(objective.options).get("roster"), str), (
            f"{name}.num_identities is {objective.num_identities}, but no option `roster` names "
            "their file; certificates are issued by it"
        )
    _check_odd_samples(objective)
    check_losses(objective, pairs, seed)


def _pickled(objective: Objective) -> Objective:
    try:
        return pickle.loads(pickle.dumps(objective))
    except Exception as error:  # whatever it holds
        raise AssertionError(
            f"{type(objective).__name__} cannot be pickled to a loader's worker: {error}; hold no "
            "lambda, open file or lock, and define it at the top of its module"
        ) from error


def _pair(objective: Objective, samples: Sequence[Sample], turn: int, seed: int) -> Pair:
    """As a loader's worker gets it: from the first sample that serves."""
    name = type(objective).__name__
    rng = Random(f"{seed} {turn}")
    reasons = []
    for i in range(len(samples)):
        sample = samples[(turn + i) % len(samples)]
        accepted = objective.accepts(sample)
        assert isinstance(accepted, bool), f"{name}.accepts gives {accepted!r}; True or False"
        if not accepted:
            reasons.append("vetoed")
            continue
        try:
            pair = objective.pair(sample, turn, rng)
        except BadSample as bad:
            reasons.append(bad.reason)
            continue
        if pair is not None:
            assert isinstance(pair, Pair), f"{name}.pair gives {pair!r}; a Pair or None"
            _check_repeats(objective, sample, pair)
            return pair
        reasons.append("None")
    raise AssertionError(
        f"{name}.pair gives no pair at turn {turn} from any of {len(samples)} samples "
        f"({', '.join(sorted(set(reasons)))}); give this check `samples` that suit it"
    )


def _check_repeats(objective: Objective, sample: Sample, pair: Pair) -> None:
    """What is kept of the clean sample stands in the place of what the teacher is shown."""
    for tower in objective.repeats_clean:
        its_own = sample.text if tower is Tower.TEXT else sample.image
        assert part_of(pair, "teacher", tower) is its_own, (
            f"{type(objective).__name__}.repeats_clean has {tower.value}, but a pair shows the "
            f"teacher another teacher_{tower.value} than the sample's own; leave the tower out"
        )


def _same(first: Pair, second: Pair) -> bool:
    def bare(pair: Pair) -> Pair:
        return replace(pair, student_image=None, teacher_image=None)

    pictures = (
        (first.student_image, second.student_image),
        (first.teacher_image, second.teacher_image),
    )
    return bare(first) == bare(second) and all(
        one is other or (one is not None and other is not None and torch.equal(one, other))
        for one, other in pictures
    )


def _check_pair(name: str, pair: Pair, turn: int, towers: frozenset[Tower]) -> None:
    place = f"{name}.pair at turn {turn}"
    assert pair.student_text is not None or pair.student_image is not None, (
        f"{place} shows the student nothing; give it a text or a picture, or return None"
    )
    for model in ("student", "teacher"):
        text, image = part_of(pair, model, Tower.TEXT), part_of(pair, model, Tower.IMAGE)
        assert text is None or (isinstance(text, str) and text), (
            f"{place} has {text!r} as {model}_text; a caption or None"
        )
        if image is not None:
            found = (
                f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image)
            )
            assert isinstance(image, Tensor) and image.dtype == torch.uint8, (
                f"{place} has {found} as {model}_image; uint8 (3, h, w)"
            )
            assert image.ndim == 3 and image.shape[0] == 3 and image.numel(), (
                f"{place} has {found} as {model}_image; uint8 (3, h, w)"
            )
    for tower, model in product(frozenset(Tower) - towers, ("student", "teacher")):
        assert part_of(pair, model, tower) is None, (
            f"{place} has a {model}_{tower.value}, but its towers are {listed(towers)}; "
            "leave it out or add the tower"
        )
    assert isinstance(pair.label, int) and -LARGEST_LABEL <= pair.label <= LARGEST_LABEL, (
        f"{place} has the label {pair.label!r}; a whole number of 64 bits"
    )


def _check_odd_samples(objective: Objective) -> None:
    """What shards hold beside good samples may be refused, not stumbled over."""
    whole = default_samples()[0]
    for what, sample in (
        ("without a caption", replace(whole, text=None)),
        ("without a picture", replace(whole, image_bytes=None)),
        ("with a broken picture", replace(whole, image_bytes=b"no picture")),
        ("without a label", replace(whole, label=None)),
        ("with braces, quotes and other scripts", replace(whole, text='{} {0} "☃" שלום %s \\')),
    ):
        for turn in range(objective.options.batch_size):
            try:
                if objective.accepts(sample):
                    objective.pair(sample, turn, Random(turn))
            except BadSample:
                pass
            except Exception as error:  # whatever a plugin stumbles over
                raise AssertionError(
                    f"{type(objective).__name__} raises {type(error).__name__}: {error} on a "
                    f"sample {what}; raise BadSample with a reason, or return None"
                ) from error
