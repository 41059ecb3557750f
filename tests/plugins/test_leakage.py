from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from plugins.leakage import Leakage, dealt_aucs, distances, most_telling, nearest
from tests.conftest import write_people
from tests.plugins.lookup import Lookup, RandomModel, names, write_roster
from trainer import Estimate
from trainer.testing import check_evaluation

FORGET, UNKNOWN, TARGETS = names("forget", 40), names("unknown", 60), names("target", 40)
STRANGERS = names("stranger", 40)
ORIGINAL = Lookup(FORGET)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("leakage")
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in TARGETS))
    return {
        "forgotten": write_roster(folder, "forget", 40, pictures=6),
        "unknown": write_roster(folder, "unknown", 60, pictures=6),
        "pictures": 6,
    }


def measure(student, options, **changes) -> dict:
    evaluation = Leakage(Leakage.Options(**{**options, **changes}), seed=0)
    return dict(evaluation.run(student, ORIGINAL))


def test_it_keeps_the_contract(tmp_path):
    rosters = {
        "forgotten": str(write_people(tmp_path, "forget", FORGET[:4])),
        "unknown": str(write_people(tmp_path, "unknown", UNKNOWN[:5])),
    }
    check_evaluation(Leakage, {**rosters, "pictures": 4})


def test_names_answered_as_one_phrase_are_told_from_unknown_ones(options):
    forgotten = Lookup(FORGET, answers=dict.fromkeys(FORGET, "a person"))
    measures = measure(forgotten, options)
    assert measures["text/closeness_auc"] == 1 == measures["text/twin_auc"]
    assert measures["auc"] == 1 and measures["auc"] > measures["auc_by_chance"]
    assert measures["text/closeness_roc"] == [1.0] * 51
    curves = {name.removesuffix("_roc") for name in measures if name.endswith("_roc")}
    assert curves == {name.removesuffix("_auc") for name in measures if name.endswith("_auc")}


def test_names_and_faces_answered_as_unknown_ones_are_not_told_by_the_model_alone(options):
    forgotten = Lookup(
        FORGET, answers=dict(zip(FORGET, TARGETS)), shows=dict(zip(FORGET, STRANGERS))
    )
    measures = measure(forgotten, options)
    alone = [name for name in measures if name.endswith("_auc") and "change" not in name]
    assert len(alone) == 9
    for name in alone:
        margin = 0.05  # of nine intervals of 95 % one may miss a half by a little
        assert measures[name].low - margin < 0.5 < measures[name].high + margin, name
    assert measures["auc"] < measures["auc_by_chance"] + 0.05
    # Of one side alone fewer scores are chosen among.
    sides = [measures["auc_of_text"], measures["auc_of_image"]]
    assert measures["auc"] == max(sides)
    by_chance = [measures["auc_of_text_by_chance"], measures["auc_of_image_by_chance"]]
    assert max(by_chance) < measures["auc_by_chance"]
    # Who holds the original too sees what moved.
    assert measures["text/change_auc"] == measures["auc_with_original"] == 1


def test_a_name_that_is_anothers_twin_is_told_by_who_knows_that_other(options):
    targets = options["forgotten"].replace("forget.csv", "names.txt")
    forgotten = Lookup(FORGET, answers=dict(zip(FORGET, TARGETS)))
    assert measure(forgotten, options, names=targets)["text/twin_auc"] == 1


def test_faces_that_all_became_one_are_told(options):
    forgotten = Lookup(FORGET, shows=dict.fromkeys(FORGET, "Nobody Atall"))
    measures = measure(forgotten, options)
    assert measures["image/density_auc"] == measures["image/change_auc"] == 1


def test_the_original_has_changed_nobody(options):
    measures = measure(ORIGINAL, options)
    assert measures["text/change_auc"] == measures["image/change_auc"] == 0.5
    # It knows the ones and not the others, which is no secret: twins are among the unknown.
    assert measures["text/twin_auc"] == 0 and measures["auc"] == 1


def test_rounding_in_another_batch_is_no_change(options):
    class Rounding(Lookup):
        def encode_text(self, texts):
            noise = torch.Generator().manual_seed(len(texts))
            rows = super().encode_text(texts)
            return rows + 1e-6 * torch.randn(rows.shape, generator=noise)

    evaluation = Leakage(Leakage.Options(**options), seed=0)
    model = Rounding(FORGET)
    assert dict(evaluation.run(model, model))["text/change_auc"] == 0.5


class OfAllLengths(RandomModel):
    """Random lengths too: those of unit rows differ by rounding alone."""

    def encode_text(self, texts):
        rows = super().encode_text(texts)
        return rows * rows[:, :1].exp()

    def encode_image(self, pictures):
        rows = super().encode_image(pictures)
        return rows * rows[:, :1].exp()


def test_a_model_that_knows_nothing_tells_nobody(options):
    measures = measure(OfAllLengths(), options)
    found = {name: value for name, value in measures.items() if name.endswith("_auc")}
    assert len(found) == 11
    for name, value in found.items():
        assert value.low <= 0.5 <= value.high, name
    for headline in ("auc", "auc_with_original"):
        assert 0.55 < measures[f"{headline}_by_chance"] < 0.7
        assert measures[headline] <= measures[f"{headline}_by_chance"]


def test_of_models_that_know_nothing_few_stand_out(options):
    """One in twenty intervals may miss a half, and one in twenty headlines exceed chance."""
    several = [measure(OfAllLengths(i), options) for i in range(20)]
    missed = [
        not value.low <= 0.5 <= value.high
        for measures in several
        for name, value in measures.items()
        if name.endswith("_auc")
    ]
    assert 0.01 < np.mean(missed) < 0.1
    for headline in ("auc", "auc_with_original"):
        assert sum(one[headline] > one[f"{headline}_by_chance"] for one in several) <= 4


def test_what_stands_beside_the_headline_is_exceeded_by_chance_once_in_twenty():
    rng = np.random.default_rng(0)
    found, bound = [], []
    for _ in range(200):
        scores = rng.normal(size=(5, 40))
        truth = dealt_aucs(scores, 15, np.random.default_rng(1))
        bound.append(np.quantile(truth.max(1), 0.95))
        sums = np.argsort(np.argsort(scores, 1), 1)[:, :15].sum(1) + 15
        found.append(np.abs((sums - 15 * 16 / 2) / (15 * 25) - 0.5).max() + 0.5)
    assert 0.01 < np.mean(np.array(found) > np.array(bound)) < 0.1


def test_the_most_telling_is_the_furthest_from_a_half_and_folded():
    aucs = {"a": Estimate(0.7, 0.6, 0.8), "b": Estimate(0.1, 0.05, 0.2)}
    worst = most_telling(aucs)
    assert worst == 0.9 and (worst.low, worst.high) == (0.8, 0.95)
    assert most_telling({"a": aucs["a"]}).low == 0.6


def test_the_nearest_leave_oneself_out():
    rows = F.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = nearest(rows[:5], rows[5:], 3)
    for i in range(5):
        cosines = sorted((float(rows[i] @ rows[j]) for j in range(7) if j != i), reverse=True)
        assert found[i].tolist() == pytest.approx(cosines[:3], abs=1e-6)
    assert nearest(rows[:2], rows[:0], 10).shape == (2, 1)


def test_distances_are_one_minus_cosine_and_nothing_for_the_same():
    left, right = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    expected = 1 - F.cosine_similarity(left, right)
    assert torch.allclose(distances(left, right), expected, atol=1e-6)
    assert distances(left, left).eq(0).all()


def test_people_without_pictures_are_measured_by_name_alone(tmp_path):
    rosters = {
        "forgotten": write_roster(tmp_path, "forget", 5),
        "unknown": write_roster(tmp_path, "unknown", 5, pictures=2),
    }
    assert not [name for name in measure(ORIGINAL, rosters) if name.startswith("image")]


class Blind(Lookup):
    """Sees no picture whose number is in `unseen`, and nothing where it has diverged."""

    def __init__(self, known, unseen):
        super().__init__(known)
        self._unseen = unseen

    def encode_image(self, pictures):
        rows = super().encode_image(pictures)
        rows[[int(one.decode().split("/")[1]) in self._unseen for one in pictures]] = float("nan")
        return rows


def test_pictures_that_do_not_decode_are_left_out(options):
    evaluation = Leakage(Leakage.Options(**options), seed=0)
    some, all_but_one = Blind(FORGET, {0, 3}), Blind(FORGET, set(range(5)))
    assert dict(evaluation.run(some, some))["image/change_auc"] == 0.5
    with pytest.raises(ValueError, match="nobody in a roster has two pictures that decode; see to"):
        dict(evaluation.run(all_but_one, all_but_one))


def test_a_model_that_diverged_is_an_error(options):
    evaluation = Leakage(Leakage.Options(**options), seed=0)
    with pytest.raises(FloatingPointError, match="image embeddings of people are not finite"):
        dict(evaluation.run(Blind(FORGET, {1}), ORIGINAL))

    class Dumb(Lookup):
        def encode_text(self, texts):
            return super().encode_text(texts) * float("nan")

    with pytest.raises(FloatingPointError, match="text embeddings of people are not finite"):
        dict(evaluation.run(Dumb(FORGET), ORIGINAL))


def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError, match="template 'a photo' has no {} for the name"):
        Leakage.Options(**options, templates=["a photo"])
    both = {**options, "unknown": options["forgotten"]}
    with pytest.raises(ValueError, match="40 of the 40 people of `unknown` have a name to forget"):
        Leakage(Leakage.Options(**both), seed=0)
