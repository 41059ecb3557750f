from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from plugins.face_probe import CLASSIFIERS, FaceProbe
from tests.conftest import write_people
from tests.plugins.lookup import Lookup, RandomModel, names, write_roster
from trainer.testing import check_evaluation

FORGET, UNSEEN = names("forget", 12), names("unseen", 18)
ORIGINAL = Lookup([*FORGET, *UNSEEN])


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("face_probe")
    groups = {
        "forget": write_roster(folder, "forget", 12, pictures=16),
        "unseen": write_roster(folder, "unseen", 18, pictures=16),
    }
    return {"groups": groups, "pictures": 16}


def measure(student, options, **changes) -> dict:
    evaluation = FaceProbe(FaceProbe.Options(**{**options, **changes}), seed=0)
    return dict(evaluation.run(student, ORIGINAL))


def test_it_keeps_the_contract(tmp_path):
    roster = str(write_people(tmp_path, "forget", FORGET[:4]))
    check_evaluation(FaceProbe, {"groups": {"forget": roster}, "shots": [1, 2], "pictures": 4})


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_people_the_model_knows_are_learnt_from_a_few_pictures(options, classifier):
    measures = measure(ORIGINAL, options, classifier=classifier)
    for group in ("forget", "unseen"):
        assert measures[f"student/{group}/accuracy_1"] > 0.9
        assert measures[f"student/{group}/accuracy_10"] == 1
    assert measures["chance"] == 1 / 30
    assert measures["forget/people"] == 12 and measures["forget/dropped"] == 0


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_faces_that_all_became_one_are_told_by_chance_alone(options, classifier):
    forgotten = Lookup([*FORGET, *UNSEEN], shows=dict.fromkeys(FORGET, "Nobody Atall"))
    measures = measure(forgotten, options, classifier=classifier)
    among_them = measures["student/forget/accuracy_10"]  # one of the twelve, not of all
    assert among_them.low <= 1 / 12 <= among_them.high
    assert measures["student/unseen/accuracy_10"] == 1 == measures["teacher/forget/accuracy_10"]


def test_faces_that_became_a_strangers_each_are_learnt_as_before(options):
    shows = dict(zip(FORGET, names("stranger", 12)))
    measures = measure(Lookup([*FORGET, *UNSEEN], shows=shows), options)
    assert measures["student/forget/accuracy_10"] == 1


def test_a_model_that_knows_nothing_gives_chance(options):
    measures = measure(RandomModel(), options)
    for group in ("forget", "unseen"):
        found = measures[f"student/{group}/accuracy_10"]
        assert found.low <= measures["chance"] <= found.high


def test_what_is_learnt_is_not_asked(options):
    """A model that tells pictures alone apart: all right if they were the same."""
    measures = measure(RandomModel(), options, classifier="nearest_mean", shots=[10])
    assert measures["student/forget/accuracy_10"] < 0.3


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_the_classifiers_name_the_nearest_of_clear_cases(classifier):
    rng = np.random.default_rng(0)
    people = np.eye(5)
    learnt = people[:, None] + 0.1 * rng.normal(size=(5, 3, 5))
    order = rng.integers(5, size=40)
    asked = people[order] + 0.1 * rng.normal(size=(40, 5))
    assert CLASSIFIERS[classifier](learnt, asked).tolist() == order.tolist()


class Blind(Lookup):
    def __init__(self, unseen):
        super().__init__([*FORGET, *UNSEEN])
        self._unseen = unseen

    def encode_image(self, pictures):
        rows = super().encode_image(pictures)
        rows[[one.decode().split("/")[0] in self._unseen for one in pictures]] = float("nan")
        return rows


def test_people_without_all_their_pictures_are_dropped_and_counted(options, tmp_path):
    fewer = write_roster(tmp_path, "few", 3, pictures=9)
    evaluation = FaceProbe(FaceProbe.Options(**options), seed=0)
    model = Blind(FORGET[:2])
    measures = dict(evaluation.run(model, model))
    assert measures["forget/people"] == 10 and measures["forget/dropped"] == 2
    assert measures["chance"] == 1 / 28
    with pytest.raises(ValueError, match="nobody in a group has pictures that all decode"):
        dict(evaluation.run(ORIGINAL, Blind(FORGET)))
    with pytest.raises(ValueError, match="group few: none of the 3 people of .* has 16 pictures"):
        measure(ORIGINAL, options, groups={"few": fewer})


def test_a_student_that_diverged_is_an_error(options):
    with pytest.raises(FloatingPointError, match="student's image embeddings of people are not"):
        measure(Blind(FORGET[:1]), options)


def test_wrong_options_are_refused(options, tmp_path):
    with pytest.raises(ValidationError, match="give numbers above 0, each once"):
        FaceProbe.Options(**options, shots=[5, 5])
    with pytest.raises(ValueError, match="pictures is 16 and 16 of them are learnt; raise it"):
        measure(ORIGINAL, options, shots=[16])
    alone = write_people(tmp_path, "alone", ["Zebulon Quimby"], pictures=20)
    with pytest.raises(ValueError, match="one person in all groups"):
        measure(ORIGINAL, {"groups": {"alone": str(alone)}})
    twice = {"a": options["groups"]["forget"], "b": options["groups"]["forget"]}
    with pytest.raises(ValueError, match="12 of the 12 people of `groups.b` have a name of group"):
        measure(ORIGINAL, options, groups=twice)
