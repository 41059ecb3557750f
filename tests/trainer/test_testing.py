"""That each check of the kit can fail, and says what to mend. Plugins' own tests run it on them."""

from __future__ import annotations

import random
from itertools import count

import numpy as np
import pytest
import torch
from pydantic import ConfigDict

from plugins.identity_inference import IdentityInference
from plugins.zero_shot import ZeroShot
from tests.conftest import picture, write_people, write_shard
from trainer import (
    BadSample,
    Evaluation,
    Objective,
    Pair,
    Rows,
    Sample,
    StrictModel,
    Tower,
    cosine_distance,
)
from trainer.testing import FakeEncoder, check_evaluation, check_objective, default_samples


class Good(Objective):
    """Every caption as the teacher has it; the broken ones below differ from it in one thing."""

    kind = "good"
    trains = frozenset({Tower.TEXT})

    def pair(self, clean, turn, rng):
        if clean.text is None:
            raise BadSample("no caption")
        return Pair(student_text=f"{clean.text} {rng.random()}", teacher_text=clean.text)

    def loss_fn(self, teacher):
        return text_loss


class Repeating(Good):
    kind = "repeating"
    repeats_clean = frozenset({Tower.TEXT})


def text_loss(student, teacher):
    return {"text": cosine_distance(student.text, teacher.text)}


def complaint(**changes) -> str:
    """What the kit says of `Good` with these members in place of its own."""
    cls = type("Broken", (Good,), {"kind": "broken", "__module__": __name__, **changes})
    globals()["Broken"] = cls  # so that it can be pickled
    with pytest.raises(AssertionError) as raised:
        check_objective(cls, {"batch_size": 4})
    return str(raised.value)


def complaint_of_pair(**parts) -> str:
    return complaint(pair=lambda self, clean, turn, rng: Pair(**parts))


def complaint_of_loss(loss, **changes) -> str:
    return complaint(loss_fn=lambda self, teacher: loss, **changes)


def test_a_good_objective_passes():
    check_objective(Good, {"batch_size": 4})


# What it is made of


def test_a_kind_must_be_a_word_of_its_own():
    assert "Broken.kind is 'Two words'" in complaint(kind="Two words")
    cls = type("Inherits", (Good,), {})
    with pytest.raises(AssertionError, match="Inherits.kind is None; write kind ="):
        check_objective(cls, {"batch_size": 4})


def test_options_must_be_strict_and_accept_those_of_the_check():
    loose = type("Loose", (Objective.Options,), {"model_config": ConfigDict(extra="allow")})
    assert "not frozen or takes unknown options" in complaint(Options=loose)
    assert "no subclass of Objective.Options" in complaint(Options=StrictModel)
    kinds = type("Kinds", (Objective.Options,), {"__annotations__": {"kind": str}})
    assert "has a field `kind`" in complaint(Options=kinds)
    with pytest.raises(AssertionError, match="refuses the options of this check: 1 validation"):
        check_objective(Good, {"batch_size": 0})


def test_it_must_keep_its_options_and_seed():
    assert "call super().__init__(options, seed)" in complaint(__init__=lambda self, o, s: None)


def test_it_must_be_picklable():
    def with_a_lambda(self, options, seed):
        Objective.__init__(self, options, seed)
        self.name = lambda: "a"

    assert "cannot be pickled to a loader's worker" in complaint(__init__=with_a_lambda)


def test_its_towers_must_be_some_of_those_it_trains():
    assert "Broken.towers is image; give some of its trains, text" in complaint(
        towers=frozenset({Tower.IMAGE})
    )
    assert "Broken.towers is ; give" in complaint(towers=frozenset())


# Its pairs


def test_pairs_must_not_depend_on_global_randomness_or_on_calls_before():
    def by_global_random(self, clean, turn, rng):
        return Pair(student_text=f"{random.random()}", teacher_text="a")

    calls = count()

    def by_calls(self, clean, turn, rng):
        return Pair(student_text=f"{next(calls)}", teacher_text="a")

    def by_torch(self, clean, turn, rng):
        return Pair(student_text=f"{torch.rand(1).item()}", teacher_text="a")

    for pair in (by_global_random, by_calls, by_torch):
        assert "gives another pair at turn 0 from a pickled copy" in complaint(pair=pair)


def test_pictures_of_pairs_are_compared_too():
    def noise(self, clean, turn, rng):
        image = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
        return Pair(student_text="a", teacher_image=image)

    assert "gives another pair at turn 0" in complaint(pair=noise)


def test_global_random_numbers_are_left_as_they_were():
    random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), torch.rand(1)
    random.seed(3)
    torch.manual_seed(3)
    check_objective(Good, {"batch_size": 4})
    assert (random.random(), torch.rand(1)) == expected


def test_pairs_must_have_the_towers_that_are_trained_and_no_others():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    both = frozenset(Tower)
    assert "at turn 0 has a student_image, but its towers are text" in complaint_of_pair(
        student_text="a", student_image=image
    )
    assert "at turn 0 has a teacher_image, but its towers are text" in complaint_of_pair(
        student_text="a", teacher_image=image
    )
    assert "towers has image, but no pair has a student_image" in complaint(trains=both)


def test_who_is_counted_must_be_in_a_roster():
    message = complaint(num_identities=3)
    assert "num_identities is 3, but no option `roster` names their file" in message


def test_a_loss_may_keep_what_the_teacher_makes_of_its_targets():
    class Keeping(Good):
        kind = "keeping"

        def loss_fn(self, teacher):
            target = teacher.encode_text(["a person"])
            return lambda student, taught: {"text": (student.text @ target.mT).mean()}

    globals()["Keeping"] = Keeping
    Keeping.__qualname__ = "Keeping"
    check_objective(Keeping, {"batch_size": 4})


def test_pairs_must_be_whole():
    assert "at turn 0 shows the student nothing" in complaint_of_pair(teacher_text="a")
    assert "has '' as student_text; a caption or None" in complaint_of_pair(student_text="")
    for image in (torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)):
        assert "as teacher_image; uint8 (3, h, w)" in complaint_of_pair(
            student_text="a", teacher_image=image
        )
    for label in (2**63, "a", 1.0):
        found = complaint_of_pair(student_text="a", label=label)
        assert f"has the label {label!r}; a whole number of 64 bits" in found
    assert "gives 'a'; a Pair or None" in complaint(pair=lambda self, clean, turn, rng: "a")


def test_what_is_said_to_be_the_clean_sample_must_be():
    """What is kept beside shards would be wrong for the other one."""
    check_objective(Repeating, {"batch_size": 4})
    repeats = {"repeats_clean": Repeating.repeats_clean}
    changed = {"pair": lambda self, clean, turn, rng: Pair(clean.text, teacher_text="a person")}
    assert "another teacher_text than the sample's own" in complaint(**repeats, **changed)


def test_some_sample_must_serve():
    message = complaint(pair=lambda self, clean, turn, rng: None)
    assert "no pair at turn 0 from any of 8 samples (None); give this check `samples`" in message
    assert "(vetoed)" in complaint(accepts=lambda self, sample: False)
    assert "Broken.accepts gives None; True or False" in complaint(accepts=lambda self, s: None)


@pytest.mark.parametrize(
    ("text_of", "what"),
    [
        (lambda sample: sample.text.upper(), "without a caption"),
        (lambda sample: f"{len(sample.image_bytes)}", "without a picture"),
        (lambda sample: f"{sample.image.shape and len(sample.label)}", "without a label"),
        (lambda sample: (sample.text or "a").format(), "with braces"),
    ],
)
def test_odd_samples_must_not_stop_it(text_of, what):
    def pair(self, clean, turn, rng):
        return Pair(student_text=text_of(clean), teacher_text="a")

    assert f"on a sample {what}" in complaint(pair=pair)


def test_a_broken_picture_must_not_stop_it():
    def pair(self, clean, turn, rng):
        if clean.image_bytes == b"no picture":
            raise OSError("cannot identify image file")
        return Pair(student_text="a", teacher_text="a")

    assert "raises OSError: cannot identify image file on a sample with a broken picture" in (
        complaint(pair=pair)
    )


# Its loss


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda s, t: {}, "gives {}; {term: scalar}"),
        (lambda s, t: s.text.sum(), "; {term: scalar}"),
        (lambda s, t: {"a b": s.text.sum()}, "a term named 'a b'; a word without spaces or /"),
        (lambda s, t: {"a": s.text.sum(0)}, "as a on a whole step; a scalar tensor"),
        (lambda s, t: {"a": 0.5}, "gives 0.5 as a on a whole step; a scalar tensor"),
        (lambda s, t: {"a": s.text.square().sum() / 0}, "gives inf as a on a whole step"),
        (lambda s, t: {"a": s.text.sum().detach()}, "gives no gradient on a whole step"),
        (lambda s, t: {"a": (s.text * 0).sqrt().sum()}, "gives a gradient that is not finite"),
        (lambda s, t: s.text.missing, "raises AttributeError"),
    ],
)
def test_losses_must_be_finite_scalars_by_name(loss, message):
    assert message in complaint_of_loss(loss)


def test_the_loss_must_reach_the_student_and_leave_the_teacher():
    def of_the_scale_alone(student, teacher):
        return {"text": student.logit_scale * teacher.text.sum()}

    def of_the_teacher(student, teacher):
        return {"text": cosine_distance(student.text, teacher.text.requires_grad_())}

    def in_place(student, teacher):
        teacher.text.mul_(2)
        return text_loss(student, teacher)

    assert "does not reach the student's text embeddings" in complaint_of_loss(of_the_scale_alone)
    assert "asks for a gradient of the teacher" in complaint_of_loss(of_the_teacher)
    assert "changes embeddings in place" in complaint_of_loss(in_place)
    assert "does not reach logit_scale" in complaint(trains_temperature=True)


def test_the_terms_must_be_the_same_whatever_rows_a_rank_has():
    def sorts(self, clean, turn, rng):
        return Pair(student_text="a", teacher_text="a" if turn % 2 else None, label=turn % 2)

    def without_a_teacher(student, teacher):
        terms = {"forget": student.text.square().mean()}
        if teacher.text is not None:
            terms["keep"] = cosine_distance(student.text[student.text_labels == 1], teacher.text)
        return terms

    def not_thinking_of_it(student, teacher):
        return {"all": student.text.mean() + teacher.text.mean()}

    message = complaint_of_loss(without_a_teacher, pair=sorts)
    assert "has the terms forget on 4 rows of student_text labelled 0" in message
    assert "but forget, keep on a whole step; give all on every rank" in message
    message = complaint_of_loss(not_thinking_of_it, pair=sorts)
    assert "rows that are absent make an embedding None" in message


def test_loss_fn_must_give_a_function():
    assert "loss_fn gives None; a function" in complaint(loss_fn=lambda self, teacher: None)


# Evaluations


class GoodEvaluation(Evaluation):
    kind = "good_evaluation"

    def run(self, student, teacher):
        yield "text/mean", student.encode_text(["a", "b"]).mean().item()
        yield "histogram", [0.0, 1.0]


def evaluation_complaint(run, **changes) -> str:
    cls = type("Broken", (Evaluation,), {"kind": "broken", "run": run, **changes})
    with pytest.raises(AssertionError) as raised:
        check_evaluation(cls, {})
    return str(raised.value)


def test_a_good_evaluation_passes():
    check_evaluation(GoodEvaluation, {"every": 5})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "run yields nothing; yield a (name, value)"),
        (["tpr"], "run yields 'tpr'; a (name, value)"),
        ([("Joe Doe", 1.0)], "a measure named 'Joe Doe'; words without spaces"),
        ([("/a", 1.0)], "a measure named '/a'"),
        ([("a", 1.0), ("a", 2.0)], "yields a twice; one value for each name"),
        ([("a", 1)], "yields a as int; a float, or a list of floats"),
        ([("a", torch.tensor(1.0))], "yields a as Tensor; a float"),
        ([("a", [1.0, None])], "yields a as NoneType; a float"),
        ([("a", float("nan"))], "yields a as nan; leave out what is none"),
        ([("a", [float("inf")])], "yields a as inf"),
        ([("a", Rows([{"won": 1}]))], "yields a as Rows without an `identity`"),
        ([("a", Rows([["p1", 1]]))], "yields a as Rows without an `identity`"),
        ([("a", Rows([{"identity": "p1"}] * 2))], "yields a as Rows with one person twice"),
        ([("a", Rows([{"identity": "p1", "group": 1}]))], "with a `group` that is no word"),
        (
            [("a", Rows([{"identity": "p1", "won": np.int64(1)}]))],
            "yields a as Rows with what JSON cannot hold",
        ),
        (
            [("a", Rows([{"identity": "p1", "won": float("nan")}]))],
            "yields a as Rows with what JSON cannot hold",
        ),
    ],
)
def test_measures_must_be_finite_floats_by_name(rows, message):
    assert message in evaluation_complaint(lambda self, student, teacher: iter(rows))


def test_measures_must_be_the_same_again():
    numbers = count()

    def made(self, options, seed):
        Evaluation.__init__(self, options, seed)
        self.number = float(next(numbers))

    assert "other measures when run again" in evaluation_complaint(
        lambda self, student, teacher: iter([("a", random.random())])
    )
    assert "other measures when made again with the same seed" in evaluation_complaint(
        lambda self, student, teacher: iter([("a", self.number)]), __init__=made
    )


def test_the_built_in_evaluations_keep_the_contract(tmp_path):
    others = tmp_path / "others.txt"
    others.write_text("".join(f"Other Name{i}\n" for i in range(9)))
    groups = {
        group: str(write_people(tmp_path, group, [f"{group} Person{i}" for i in range(3)]))
        for group in ("forget", "unknown")
    }
    options = {"groups": groups, "distractors": str(others), "candidates": 10, "pictures": 4}
    check_evaluation(IdentityInference, options)

    samples = {f"{i}": {"png": picture(i, kind="PNG"), "cls": f"{i % 3}"} for i in range(9)}
    samples["broken"] = {"png": b"broken", "cls": "0"}
    shard = write_shard(tmp_path / "labelled.tar", samples)
    classes = {"classes": ["red", "green", "blue"], "templates": ["a {c} thing"]}
    check_evaluation(ZeroShot, {"shards": [str(shard)], **classes})


# The encoder


def test_the_fake_encoder_is_like_the_real_one():
    encoder = FakeEncoder(0)
    one, other, again = encoder.encode_text(["a", "b", "a"])
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one, FakeEncoder(1).encode_text(["a"])[0])
    good, bad = encoder.encode_image([picture(1), b"broken"])
    assert good.isfinite().all() and bad.isnan().all()
    assert encoder.encode_text([]).shape == (0, 16) and not good.requires_grad


def test_the_default_samples_are_whole():
    for sample in default_samples():
        assert isinstance(sample, Sample) and sample.text and sample.image.shape == (3, 24, 32)
