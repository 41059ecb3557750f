"""The kit for plugin authors: does an objective or an evaluation keep its contract?

    def test_my_objective_keeps_the_contract():
        check_objective(MyObjective, {"batch_size": 8})

Each check that fails is an AssertionError telling what to mend. No model is loaded: embeddings are
random, and the encoders are a random projection of bytes.
"""

from __future__ import annotations

import inspect
import json
import math
import pickle
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from io import BytesIO
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from trainer.api import (
    BadSample,
    Embeddings,
    Evaluation,
    LossFn,
    Objective,
    Pair,
    Sample,
    Tower,
    decode_picture,
)
from trainer.measures import Rows

WIDTH = 16  # of the embeddings
NUM_STEPS = 2
LARGEST_LABEL = 2**63 - 1
PLACES = [(model, tower) for model in ("student", "teacher") for tower in Tower]
MEASURE = re.compile(r"[^\s/]+(/[^\s/]+)*")


def check_objective(
    cls: type[Objective],
    options: dict[str, Any],
    samples: Sequence[Sample] | None = None,
    seed: int = 0,
) -> None:
    """Raises AssertionError telling what of the contract in `trainer.api.Objective` is broken.

    samples: clean ones that suit it; without them, small pictures with captions.
    """
    objective = _built(cls, Objective, options, seed)
    name = cls.__name__
    towers = objective.towers
    assert towers and towers <= cls.trains, (
        f"{name}.towers is {_listed(towers)}; give some of its trains, {_listed(cls.trains)}"
    )
    samples = default_samples() if samples is None else samples
    copy = _pickled(objective)
    turns = range(NUM_STEPS * objective.options.batch_size)
    with _global_seeds(1):
        pairs = [_pair(objective, samples, turn, seed) for turn in turns]
    # Backwards and after another global seed: a pair may depend on neither.
    for other, what in (
        (copy, "a pickled copy"),
        (_built(cls, Objective, options, seed), "another one of the same options and seed"),
    ):
        with _global_seeds(2):
            again = [_pair(other, samples, turn, seed) for turn in reversed(turns)][::-1]
        for turn, (first, second) in enumerate(zip(pairs, again)):
            assert _same(first, second), (
                f"{name}.pair gives another pair at turn {turn} from {what}, called in another "
                "order; draw only from `rng` and keep no state between calls"
            )
    for turn, pair in enumerate(pairs):
        _check_pair(name, pair, turn, towers)
    for tower in towers:
        assert any(_part(pair, "student", tower) is not None for pair in pairs), (
            f"{name}.towers has {tower.value}, but no pair has a student_{tower.value}; a tower "
            "that is trained without rows stops a distributed run: give rows or fewer towers"
        )
    _check_odd_samples(objective)
    _check_losses(objective, pairs, seed)


def check_evaluation(cls: type[Evaluation], options: dict[str, Any], seed: int = 0) -> None:
    """Raises AssertionError telling what of the contract in `trainer.api.Evaluation` is broken."""
    name = cls.__name__
    evaluation = _built(cls, Evaluation, options, seed)
    student, teacher = FakeEncoder(seed), FakeEncoder(seed + 1)
    with _global_seeds(1):
        measures = _measured(evaluation, student, teacher)
    with _global_seeds(2):
        again = _measured(evaluation, student, teacher)
        other = _measured(_built(cls, Evaluation, options, seed), student, teacher)
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
        for one in _numbers(value):
            assert isinstance(one, float), (
                f"{cls}.run yields {name} as {type(one).__name__}; a float, or a list of floats"
            )
            assert math.isfinite(one), f"{cls}.run yields {name} as {one}; leave out what is none"
        measures[name] = value
    return measures


def _numbers(value: Any) -> list:
    """What has to be a float each; rows of people are no numbers, but must be JSON's."""
    if isinstance(value, Rows):
        json.dumps(value)
        return []
    return value if isinstance(value, list) else [value]


def default_samples() -> list[Sample]:
    """Eight pictures of noise with captions."""
    return [
        Sample(f"{i:03d}", f"a photo of thing {i} on a table", _picture(i), f"thing {i % 3}")
        for i in range(8)
    ]


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class FakeEncoder:
    """An `Encoder` of no meaning: the same bytes always get the same random direction.

    As the real one: rows without gradient, NaN for a picture that does not decode.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self._embed([b"text" + text.encode() for text in texts])

    @torch.inference_mode()
    def encode_image(self, pictures: Sequence[bytes]) -> Tensor:
        pictures = [pictures[i] for i in range(len(pictures))]
        embedded = self._embed(pictures)
        for row, data in zip(embedded, pictures):
            try:
                decode_picture(data)
            except BadSample:
                row.fill_(float("nan"))
        return embedded

    @torch.inference_mode()
    def _embed(self, items: list[bytes]) -> Tensor:
        rows = [np.random.default_rng(self._number(item)).standard_normal(WIDTH) for item in items]
        return torch.tensor(np.array(rows).reshape(-1, WIDTH), dtype=torch.float32).clone()

    def _number(self, item: bytes) -> int:
        digest = blake2b(item, digest_size=8, salt=self._seed.to_bytes(8, "big")).digest()
        return int.from_bytes(digest, "big")


def _built(cls: Any, base: Any, options: dict[str, Any], seed: int) -> Any:
    name = cls.__name__
    kind = vars(cls).get("kind")
    assert isinstance(kind, str) and re.fullmatch(r"[a-z]\w*", kind), (
        f'{name}.kind is {kind!r}; write kind = "a_word_in_small_letters" in the class'
    )
    inherits = inspect.isclass(cls.Options) and issubclass(cls.Options, base.Options)
    assert inherits, f"{name}.Options is no subclass of {base.__name__}.Options; inherit from it"
    config = cls.Options.model_config
    assert config.get("frozen") and config.get("extra") == "forbid", (
        f"{name}.Options is not frozen or takes unknown options; leave model_config as inherited"
    )
    assert "kind" not in cls.Options.model_fields, (
        f"{name}.Options has a field `kind`, which is a configuration's own word; rename it"
    )
    try:
        built = cls.Options(**options)
    except ValidationError as error:
        raise AssertionError(f"{name}.Options refuses the options of this check: {error}") from None
    found = cls(built, seed)
    assert vars(found).get("options") is built and vars(found).get("seed") == seed, (
        f"{name}.__init__ does not keep its options and seed; call super().__init__(options, seed)"
    )
    return found


def _pickled(objective: Objective) -> Objective:
    try:
        return pickle.loads(pickle.dumps(objective))
    except Exception as error:  # whatever it holds
        raise AssertionError(
            f"{type(objective).__name__} cannot be pickled to a loader's worker: {error}; hold no "
            "lambda, open file or lock, and define it at the top of its module"
        ) from error


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """Other global random numbers for each seed, and afterwards as if nothing had been drawn."""
    kept, kept_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)


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
            return pair
        reasons.append("None")
    raise AssertionError(
        f"{name}.pair gives no pair at turn {turn} from any of {len(samples)} samples "
        f"({', '.join(sorted(set(reasons)))}); give this check `samples` that suit it"
    )


def _part(pair: Pair, model: str, tower: Tower) -> str | Tensor | None:
    parts = {
        ("student", Tower.TEXT): pair.student_text,
        ("student", Tower.IMAGE): pair.student_image,
        ("teacher", Tower.TEXT): pair.teacher_text,
        ("teacher", Tower.IMAGE): pair.teacher_image,
    }
    return parts[model, tower]


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
        text, image = _part(pair, model, Tower.TEXT), _part(pair, model, Tower.IMAGE)
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
    for tower in frozenset(Tower) - towers:
        assert _part(pair, "student", tower) is None, (
            f"{place} has a student_{tower.value}, but its towers are {_listed(towers)}; "
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


def _check_losses(objective: Objective, pairs: list[Pair], seed: int) -> None:
    """On a whole step, and on each sort of row alone, which may be all that a rank has."""
    size = objective.options.batch_size
    loss_fn = objective.loss_fn(FakeEncoder(seed))
    assert callable(loss_fn), f"{type(objective).__name__}.loss_fn gives {loss_fn!r}; a function"
    whole = _check_loss(objective, loss_fn, pairs[:size], "a whole step")
    sorts: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        present = tuple(_part(pair, *place) is not None for place in PLACES)
        sorts.setdefault((present, pair.label), []).append(pair)
    for rows in list(sorts.values())[:16]:
        seen = ", ".join(
            f"{model}_{tower.value}"
            for model, tower in PLACES
            if _part(rows[0], model, tower) is not None
        )
        for some in (rows[:size], rows[:1]):
            what = f"{len(some)} rows of {seen} labelled {rows[0].label}, as a rank may have alone"
            terms = _check_loss(objective, loss_fn, some, what)
            assert terms == whole, (
                f"{type(objective).__name__}'s loss has the terms {_listed(terms)} on {what}, but "
                f"{_listed(whole)} on a whole step; give all on every rank, 0 where there is none"
            )


def _check_loss(objective: Objective, loss_fn: LossFn, pairs: list[Pair], what: str) -> set[str]:
    """The names of its terms."""
    name = f"{type(objective).__name__}'s loss"
    scale = torch.tensor(10.0, requires_grad=True)
    student = _embeddings(pairs, "student", Random(1), scale)
    teacher = _embeddings(pairs, "teacher", Random(2), scale.detach())
    before = [one.detach().clone() for one in (*_rows(student), *_rows(teacher))]
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
    for rows in _rows(teacher):
        assert not rows.requires_grad and rows.grad is None, (
            f"{name} asks for a gradient of the teacher, which is frozen; do not touch it"
        )
    for rows, old in zip((*_rows(student), *_rows(teacher)), before):
        assert torch.equal(rows.detach(), old), f"{name} changes embeddings in place; copy them"
    return set(losses)


def _embeddings(pairs: list[Pair], model: str, rng: Random, scale: Tensor) -> Embeddings:
    """Random rows for the parts of the pairs that are there."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))

    def rows(tower: Tower) -> tuple[Tensor | None, Tensor | None]:
        labels = [pair.label for pair in pairs if _part(pair, model, tower) is not None]
        if not labels:
            return None, None
        embedded = torch.randn(len(labels), WIDTH, generator=generator)
        return embedded.requires_grad_(model == "student"), torch.tensor(labels)

    (text, text_labels), (image, image_labels) = rows(Tower.TEXT), rows(Tower.IMAGE)
    return Embeddings(text, image, text_labels, image_labels, scale)


def _rows(embeddings: Embeddings) -> list[Tensor]:
    return [rows for rows in (embeddings.text, embeddings.image) if rows is not None]


def _listed(items: Any) -> str:
    return ", ".join(sorted(item.value if isinstance(item, Tower) else item for item in items))
