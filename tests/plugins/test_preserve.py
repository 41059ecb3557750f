from __future__ import annotations

from random import Random

import pytest
import torch

from plugins.preserve import Preserve
from tests.conftest import picture
from trainer import BadSample, Embeddings, Sample, Tower, decode_picture
from trainer.testing import FakeEncoder, check_objective

WHOLE = Sample("a", "a dog", picture(1))
SCALE = torch.tensor(1.0)


def preserve(*towers: str, **options) -> Preserve:
    options = {"batch_size": 4, "towers": list(towers) or list(Tower)} | options
    return Preserve(Preserve.Options(**options), seed=0)


def embeddings(text, image) -> Embeddings:
    labels = [None if rows is None else torch.zeros(len(rows)) for rows in (text, image)]
    return Embeddings(text, image, *labels, SCALE)


@pytest.mark.parametrize("towers", [["text"], ["image"], ["text", "image"]])
def test_it_keeps_the_contract(towers):
    check_objective(Preserve, {"batch_size": 4, "towers": towers})


def test_student_and_teacher_see_the_same_of_the_towers_asked_for():
    both, text, image = (
        one.pair(WHOLE, 0, Random(0)) for one in (preserve(), preserve("text"), preserve("image"))
    )
    assert (both.student_text, both.teacher_text) == (text.student_text, text.teacher_text)
    assert both.student_text == both.teacher_text == "a dog"
    assert torch.equal(both.student_image, decode_picture(picture(1)))
    assert both.teacher_image is both.student_image  # so that it is resized once
    assert text.student_image is text.teacher_image is None
    assert image.student_text is image.teacher_text is None


@pytest.mark.parametrize(
    ("sample", "towers", "reason"),
    [
        (Sample("a", None, picture(1)), (), "no caption"),
        (Sample("a", "a dog", None), (), "no picture"),
        (Sample("a", "a dog", b"x"), ("image",), "undecodable picture"),
    ],
)
def test_what_lacks_a_part_is_a_bad_sample(sample, towers, reason):
    with pytest.raises(BadSample, match=f"^{reason}$"):
        preserve(*towers).pair(sample, 0, Random(0))


@pytest.mark.parametrize(("distance", "expected"), [("cosine", 0.5), ("relative", 1.5625)])
def test_the_loss_is_the_mean_distance_of_each_tower(distance, expected):
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    student = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    loss = preserve(distance=distance).loss_fn(FakeEncoder(0))
    found = loss(embeddings(student, teacher), embeddings(teacher, teacher))
    assert found["text"].item() == pytest.approx(expected)
    assert found["image"].item() == pytest.approx(0)
    assert preserve("image").loss_fn(FakeEncoder(0))(
        embeddings(None, student), embeddings(None, teacher)
    ).keys() == {"image"}
