from __future__ import annotations

import pytest

from plugins.identity_inference import EncoderSwap, IdentityInference
from plugins.identity_inference.attack import TEMPLATES
from tests.plugins.lookup import Lookup, RandomModel, names, write_roster
from trainer import Estimate

SIZES = {"forget": 16, "unseen": 12, "unknown": 12}
PROMPTS = ["{0}", "a photo of {0}", "{0} at a gala"]
SIDES = ("student_text", "student_images")
KNOWN = [*names("forget", SIZES["forget"]), *names("unseen", SIZES["unseen"])]
STRANGER = {name: f"Nobody {name.split()[1]}" for name in names("forget", SIZES["forget"])}
ORIGINAL = Lookup(KNOWN)
CHANCE = 1 / len(KNOWN)  # whoever's face a model sees in nobody's, it may be the right one


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("swap")
    others = folder / "others.txt"
    others.write_text("\n".join(names("other", 60)))
    return {
        "groups": {group: write_roster(folder, group, size, 4) for group, size in SIZES.items()},
        "distractors": str(others),
        "candidates": 100,
        "pictures": 4,
        "templates": PROMPTS,
    }


def measured(kind, options: dict, student, teacher=ORIGINAL) -> dict:
    return dict(kind(kind.Options(**options), 0).run(student, teacher))


def holds(found: Estimate, answer: float) -> bool:
    return found.low <= (answer or CHANCE) <= found.high


@pytest.mark.parametrize(
    ("student", "by_text", "by_images"),
    [
        (ORIGINAL, 1, 1),  # nothing forgotten
        (Lookup(KNOWN, answers=STRANGER), 0, 1),  # the names alone
        (Lookup(KNOWN, shows=STRANGER), 1, 0),  # the faces alone
        (Lookup(KNOWN, answers=STRANGER, shows=STRANGER), 0, 0),  # both
    ],
)
def test_the_tower_that_forgot_is_told(options, student, by_text, by_images):
    found = measured(EncoderSwap, options, student)
    for side, answer in zip(SIDES, (by_text, by_images)):
        assert holds(found[f"{side}/forget/tpr"], answer)
        assert holds(found[f"{side}/forget/tpr_2"], answer)
        assert found[f"{side}/forget/picture_accuracy"] == pytest.approx(answer, abs=0.1)
        assert found[f"{side}/unseen/tpr_2"] == 1  # who is kept is known by every pair
        assert holds(found[f"{side}/unknown/tpr_2"], 0)


def test_a_pair_of_the_same_model_is_the_attack_itself(options):
    found = measured(EncoderSwap, options, ORIGINAL)
    attack = measured(IdentityInference, options, ORIGINAL)
    for group in SIZES:
        for measure in ("tpr", "tpr_2", "picture_accuracy"):
            for side in SIDES:
                assert found[f"{side}/{group}/{measure}"] == attack[f"{group}/{measure}"]


def test_towers_that_have_nothing_in_common_name_nobody(options):
    found = measured(EncoderSwap, options, RandomModel())
    for side in SIDES:
        for group in SIZES:
            assert found[f"{side}/{group}/picture_accuracy"] < 0.1
            assert holds(found[f"{side}/{group}/tpr_2"], 0)


# --- the same known answers of the attack itself -------------------------------------------------


@pytest.mark.parametrize(
    ("student", "forget", "unseen"),
    [
        (ORIGINAL, 1, 1),
        (Lookup(KNOWN, answers=STRANGER), 0, 1),
        (Lookup(KNOWN, shows=STRANGER), 0, 1),
        (RandomModel(), 0, 0),
    ],
)
def test_the_attack_gives_the_known_answer_within_its_interval(options, student, forget, unseen):
    found = measured(IdentityInference, options, student)
    for group, answer in (("forget", forget), ("unseen", unseen), ("unknown", 0)):
        assert holds(found[f"{group}/tpr_2"], answer), group
        assert holds(found[f"{group}/tpr"], answer), group
        assert found[f"{group}/picture_accuracy"] == pytest.approx(answer, abs=0.1), group
        if group != "unknown":
            assert holds(found[f"{group}/closed_set"], answer), group
            assert found[f"{group}/closed_set"] == pytest.approx(answer, abs=0.1), group
        if answer:
            assert found[f"{group}/tpr"] == found[f"{group}/closed_set"] == 1, group
    rows = {row["group"]: 0 for row in found["people"]}
    for row in found["people"]:
        rows[row["group"]] += row["prompts_won"] >= 2
    assert {group: rows[group] / size for group, size in SIZES.items()} == {
        group: found[f"{group}/tpr_2"] for group in SIZES
    }


def test_random_towers_are_right_as_often_as_chance_is(options):
    """With one picture a prompt is won by chance once in as many times as there are names."""
    everybody = sum(SIZES.values())
    changes = {"candidates": everybody, "pictures": 1, "templates": TEMPLATES}
    found = measured(IdentityInference, {**options, **changes}, RandomModel())
    known_by_chance = 1 - (1 - 1 / everybody) ** len(TEMPLATES)
    assert 0.3 < known_by_chance < 0.5  # far from 0 and 1: the interval holds neither
    for group in SIZES:
        tpr = found[f"{group}/tpr"]
        assert 0 < tpr.low <= known_by_chance <= tpr.high < 1, group


def test_random_towers_are_right_more_often_among_the_known_alone(options):
    changes = {"candidates": 100, "pictures": 4, "templates": TEMPLATES}
    found = measured(IdentityInference, {**options, **changes}, RandomModel())
    for group in ("forget", "unseen"):
        num_cases = SIZES[group] * 4 * len(TEMPLATES)
        for measure, chance in (("picture_accuracy", 1 / 100), ("closed_set", CHANCE)):
            share = found[f"{group}/{measure}"]
            assert share.low <= chance <= share.high, (group, measure)
            deviation = (chance * (1 - chance) / num_cases) ** 0.5  # the interval is far wider
            assert share == pytest.approx(chance, abs=3 * deviation), (group, measure)
