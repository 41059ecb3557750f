from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from plugins.text_inference import TextInference, draw_gibberish, judge, misspelt, nearest
from tests.plugins.lookup import Lookup, RandomModel, names, write_roster
from trainer import fold
from trainer.testing import check_evaluation

SIZES = {"forget": 40, "unseen": 50, "unknown": 120}
KNOWN = names("forget", 40) + names("unseen", 50)


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> dict:
    """Names of made-up words, the same letters in all groups."""
    folder = tmp_path_factory.mktemp("text_inference")
    return {group: write_roster(folder, group, count) for group, count in SIZES.items()}


def measure(model, groups, **options) -> dict:
    evaluation = TextInference(TextInference.Options(groups=groups, **options), seed=0)
    return dict(evaluation.run(model, model))


def test_it_keeps_the_contract(groups):
    check_evaluation(TextInference, {"groups": groups, "gibberish": 60, "misspellings": 2})


def test_who_is_in_another_group_and_unknown_is_refused(groups):
    with pytest.raises(ValueError, match="groups.forget` have a name of group unknown; take them"):
        measure(RandomModel(), groups | {"forget": groups["unknown"]})


def test_known_names_are_flagged_and_unknown_ones_seldom(groups):
    measures = measure(Lookup(KNOWN), groups)
    for group in ("forget", "unseen"):
        assert measures[f"{group}/flagged"] == 1 == measures[f"{group}/auc"]
    assert measures["unknown/flagged"].low <= 0.05


def test_names_answered_as_unknown_ones_are_flagged_as_seldom_as_these(groups):
    answers = dict(zip(names("forget", 40), names("target", 40)))
    measures = measure(Lookup(KNOWN, answers=answers), groups)
    assert measures["forget/auc"].low < 0.5 < measures["forget/auc"].high
    assert measures["forget/flagged"].low <= 0.05
    assert measures["unseen/flagged"] == 1 == measures["unseen/auc"]


def test_names_answered_as_one_phrase_are_told_from_unknown_ones(groups):
    answers = dict.fromkeys(names("forget", 40), "a person")
    assert measure(Lookup(KNOWN, answers=answers), groups)["forget/auc"] > 0.95


def test_a_model_that_knows_nothing_tells_nobody(groups):
    measures = measure(RandomModel(), groups)
    for group in ("forget", "unseen"):
        assert measures[f"{group}/auc"].low < 0.5 < measures[f"{group}/auc"].high
        assert measures[f"{group}/flagged"].low <= 0.05


class AnotherRandomModel(RandomModel):
    def __init__(self, number: int):
        self._number = number

    def encode_text(self, texts):
        return super().encode_text([f"{self._number} {text}" for text in texts])


def test_of_people_like_gibberish_as_many_are_flagged_as_of_gibberish(groups):
    shares = [measure(AnotherRandomModel(i), groups)["unknown/flagged"] for i in range(6)]
    assert 0.02 < sum(shares) / 6 < 0.08


def test_without_the_unknown_there_is_nobody_to_tell_apart_from(groups):
    measures = measure(Lookup(KNOWN), {"forget": groups["forget"]})
    assert measures.keys() == {"forget/flagged"} and measures["forget/flagged"] == 1


def test_of_gibberish_about_the_chosen_share_is_flagged():
    rng = np.random.default_rng(0)
    flagged, scores = judge(rng.normal(size=(1000, 5)), rng.normal(size=(2000, 5)), 0.1, seed=0)
    assert 0.05 < flagged.mean() < 0.15
    far, far_scores = judge(rng.normal(size=(1000, 5)), np.full((3, 5), 6.0), 0.1, seed=0)
    assert far.all() and far_scores.min() > scores.max()


def test_gibberish_is_nobody_and_drawn_by_seed():
    people = ["Anna Bell", "Cora Dunn", "Otto Lund"]
    taken = {fold(name) for name in people}
    drawn = draw_gibberish(people, taken, 50, Random(1))
    assert len({fold(name) for name in drawn}) == 50 and not taken & {fold(one) for one in drawn}
    assert all(len(name.split()) == 2 for name in drawn)
    assert set("".join(drawn).lower()) <= set("".join(people).lower())
    assert drawn == draw_gibberish(people, taken, 50, Random(1))
    assert drawn != draw_gibberish(people, taken, 50, Random(2))


def test_too_few_letters_for_gibberish_are_an_error_that_names_nobody():
    with pytest.raises(ValueError, match="too much alike to make 40 gibberish names") as error:
        draw_gibberish(["Zz"], {"zz"}, 40, Random(0))
    assert "Zz" not in str(error.value)


def test_a_misspelt_name_has_one_other_letter():
    for seed in range(50):
        other = misspelt("Joe O'Neil", Random(seed))
        assert sum(a != b for a, b in zip("Joe O'Neil", other, strict=True)) == 1
        assert other[3] == " " and other[5] == "'" and other[0].isupper()
    assert misspelt("王", Random(0)) in "abcdefghijklmnopqrstuvwxyz"


def test_the_nearest_gibberish_is_another_than_oneself():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    units = torch.nn.functional.normalize(rows, dim=-1)
    found = nearest(units, 6)
    for i in range(9):
        literal = max(float(units[i] @ units[j]) for j in range(6) if j != i)
        assert found[i].item() == pytest.approx(literal, abs=1e-6)


def test_a_model_that_diverged_is_an_error(groups):
    class Dumb(RandomModel):
        def encode_text(self, texts):
            return super().encode_text(texts) * float("nan")

    with pytest.raises(FloatingPointError, match="text embeddings are not finite"):
        measure(Dumb(), groups, gibberish=40)


def test_a_template_without_a_place_for_the_name_is_refused(groups):
    with pytest.raises(ValidationError, match="template 'a photo' has no {} for the name"):
        TextInference.Options(groups=groups, templates=["{}", "a photo"])
