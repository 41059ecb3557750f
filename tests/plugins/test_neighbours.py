from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from plugins.identity_inference.neighbours import Neighbours, drift, recombined, sharing
from tests.plugins.lookup import Lookup, RandomModel, direction, stacked
from trainer import Estimate, Identity, fold, read_roster
from trainer.testing import FakeEncoder

FORGET = ["Joe Doe", "Jane Van Roe", "Al Poe"]
KEPT = {  # who shares what
    "Joe Coe": "shares_first",
    "Jane Low": "shares_first",
    "Bo Doe": "shares_last",
    "Tom Roe": "shares_last",
    "Tom Van Loo": "others",
    "Ann Lee": "others",
    "Eve Van Dam": "others",
}
PROMPTS = ["{0}", "a photo of {0}"]


def write_roster(folder, group: str, names, pictures: int) -> str:
    path = folder / f"{group}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "aliases", "faces"])
        for i, name in enumerate(names):
            faces = folder / group / str(i)
            faces.mkdir(parents=True)
            for j in range(pictures):
                (faces / f"{j}.jpg").write_bytes(f"{name}/{j}".encode())
            rows.writerow([name, "", faces if pictures else ""])
    return str(path)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("neighbours")
    others = folder / "others.txt"
    others.write_text("".join(f"Other Stranger{letter}\n" for letter in "abcdefgh"))
    return {
        "forget": write_roster(folder, "forget", FORGET, 0),
        "kept": write_roster(folder, "kept", KEPT, 3),
        "distractors": str(others),
        "candidates": 12,
        "pictures": 3,
        "templates": PROMPTS,
        "nearest": 1,
    }


def measured(options: dict, student, teacher, **changes) -> dict:
    return dict(Neighbours(Neighbours.Options(**{**options, **changes}), 0).run(student, teacher))


def in_set(found: dict, options: dict, name: str) -> set[str]:
    whose = {one.pseudonym: one.name for one in read_roster(options["kept"])}
    return {whose[row["identity"]] for row in found["people"] if name in row["sets"]}


class Words:
    """An `Encoder` in which a caption is the sum of its words; some words may have moved."""

    def __init__(self, moved: tuple[str, ...] = ()):
        self.moved = moved

    def encode_text(self, texts):
        return stacked([self._read(text) for text in texts])

    def _read(self, caption):
        return np.sum([direction(word, word in self.moved) for word in caption.split()], axis=0)

    def encode_image(self, pictures):
        return self.encode_text([pictures[i].decode().split("/")[0] for i in range(len(pictures))])


def test_people_are_told_apart_by_what_they_share(options):
    found = measured(options, Words(), Words(), distractors=None)
    for group in ("shares_first", "shares_last"):
        people = {name for name, shares in KEPT.items() if shares == group}
        assert in_set(found, options, group) == people
        assert found[f"{group}/people"] == len(people)
    # Of each forgotten person one; "Al Poe" has no word in common with anybody.
    assert 1 <= found["nearest/people"] <= 3
    assert in_set(found, options, "neighbours") == (
        in_set(found, options, "shares_first")
        | in_set(found, options, "shares_last")
        | in_set(found, options, "nearest")
    )
    assert in_set(found, options, "others") == KEPT.keys() - in_set(found, options, "neighbours")


def test_the_nearest_are_those_of_the_originals_embeddings(options):
    teacher = Words()
    for count in (1, 2, 4, 99):
        found = measured(options, RandomModel(), teacher, nearest=count, distractors=None)
        unit = {
            name: row / row.norm()
            for name, row in zip([*FORGET, *KEPT], teacher.encode_text([*FORGET, *KEPT]))
        }
        expected = set()
        for name in FORGET:
            order = sorted(KEPT, key=lambda other: -float(unit[name] @ unit[other]))
            expected |= set(order[:count])
        assert in_set(found, options, "nearest") == expected


def test_a_word_that_moved_moves_those_who_bear_it_and_no_others(options):
    moved = Words(moved=("Joe", "Roe"))
    found = measured(options, moved, Words(), nearest=1, distractors=None)
    whose = {one.pseudonym: one.name for one in read_roster(options["kept"])}
    for row in found["people"]:
        is_moved = bool({"Joe", "Roe"} & set(whose[row["identity"]].split()))
        assert (row["drift"] > 0.1) == is_moved
    drifts = {whose[row["identity"]]: row["drift"] for row in found["people"]}
    for group in ("shares_first", "shares_last", "others"):
        own = [drifts[name] for name in in_set(found, options, group)]
        assert found[f"{group}/drift"] == pytest.approx(np.mean(own))
        assert found[f"{group}/drift_95"] == pytest.approx(np.quantile(own, 0.95))
    assert found["others/drift"] == pytest.approx(0, abs=1e-6)
    # "Joe Roe" is among the recombined: both of its words moved.
    assert found["recombined/drift_95"] > found["shares_last/drift"]


def test_drift_is_the_mean_over_the_templates_of_what_the_cosine_lacks():
    student, teacher = RandomModel(), Words()
    captions = [[template.replace("{0}", name) for name in KEPT] for template in PROMPTS]
    expected = [
        np.mean(
            [
                1 - torch.cosine_similarity(*(one.encode_text([row[i]]) for one in
                                              (student, teacher))).item()
                for row in captions
            ]
        )
        for i in range(len(KEPT))
    ]  # fmt: skip
    assert drift(student, teacher, list(KEPT), PROMPTS).tolist() == pytest.approx(expected)


# --- known answers -------------------------------------------------------------------------------


def test_a_model_that_forgot_nothing_has_not_moved_and_knows_its_neighbours(options):
    model = Lookup([*FORGET, *KEPT])
    found = measured(options, model, model)
    for group in ("shares_first", "shares_last", "nearest", "neighbours"):
        assert found[f"{group}/drift"] == pytest.approx(0, abs=1e-6)
        assert found[f"{group}/tpr"] == found[f"{group}/tpr_2"] == 1
    assert found["recombined/drift_95"] == pytest.approx(0, abs=1e-6)


def test_a_model_that_forgot_exactly_the_forgotten_leaves_their_neighbours_alone(options):
    student = Lookup([*FORGET, *KEPT], answers=dict.fromkeys(FORGET, "Otherstranger Nobody"))
    found = measured(options, student, Lookup([*FORGET, *KEPT]))
    assert found["neighbours/drift"] == pytest.approx(0, abs=1e-6)
    assert found["neighbours/tpr_2"] == 1
    assert found["neighbours/tpr_2"].low < 1


def test_a_model_that_forgot_its_neighbours_too_is_found_out(options):
    neighbours = [name for name, shares in KEPT.items() if shares != "others"]
    answers = dict.fromkeys([*FORGET, *neighbours], "Otherstranger Nobody")
    teacher = Lookup([*FORGET, *KEPT])
    found = measured(options, Lookup([*FORGET, *KEPT], answers=answers), teacher)
    for group in ("shares_first", "shares_last"):
        assert found[f"{group}/tpr"] == 0 and found[f"{group}/drift"] > 0.3
    left = in_set(found, options, "others")
    assert left and found["others/tpr_2"] == 1
    assert found["others/drift"] == pytest.approx(0, abs=1e-6)


def test_a_model_without_memory_has_moved_by_one(options):
    found = measured(options, RandomModel(), Lookup([*FORGET, *KEPT]), nearest=99)
    assert found["neighbours/drift"].low <= 1 <= found["neighbours/drift"].high
    assert found["recombined/drift"] == pytest.approx(1, abs=0.15)
    assert found["neighbours/tpr_2"] <= 2 / 7
    assert "others/drift" not in found and found["others/people"] == 0


# --- names ---------------------------------------------------------------------------------------


def test_an_alias_is_shared_as_a_name_is():
    def person(name, *aliases):
        return Identity(id=name, name=name, aliases=aliases, faces=None, pseudonym="00")

    kept = [person("Ann Lee"), person("Ann Low", "Minnie Lee"), person("Bo Mouse"), person("Cher")]
    first, last = sharing(kept, [person("Joe Doe", "Minnie Mouse"), person("Cher Bono")])
    assert first.tolist() == [False, True, False, True]
    assert last.tolist() == [False, False, True, False]


def test_recombined_names_are_of_two_people_and_nobodys():
    taken = {fold(name) for name in [*FORGET, *KEPT, "Joe Poe"]}
    names = recombined(FORGET, taken, 100, seed=0)
    assert sorted(names) == ["Al Doe", "Al Roe", "Jane Van Doe", "Jane Van Poe", "Joe Roe"]
    assert recombined(FORGET, taken, 2, seed=0) == recombined(FORGET, taken, 2, seed=0)
    assert len(recombined(FORGET, taken, 2, seed=0)) == 2
    draws = {tuple(recombined(FORGET, taken, 2, seed)) for seed in range(9)}
    assert len(draws) > 1
    assert recombined(["Cher", "Joe Doe"], set(), 5, seed=0) == []
    assert recombined(FORGET, taken, 0, seed=0) == []


# --- contract ------------------------------------------------------------------------------------


def test_measures_have_intervals_and_tell_no_name(options):
    found = measured(options, RandomModel(), Words())
    for name, value in found.items():
        if name.endswith(("/drift", "/drift_95", "/tpr", "/tpr_2")):
            assert isinstance(value, Estimate) and value.low <= value <= value.high
    told = str(found)
    assert not [name for name in [*FORGET, *KEPT] if name in told]


def test_without_other_names_nobody_is_attacked(options):
    found = measured(options, RandomModel(), Words(), distractors=None)
    assert not [name for name in found if "tpr" in name]
    assert all("prompts_won" not in row for row in found["people"])


def test_people_with_too_few_pictures_have_drift_alone(options, tmp_path):
    few = write_roster(tmp_path, "few", ["Joe Low", "Ann Coe"], 3)
    (tmp_path / "few/0/2.jpg").unlink()
    model = Lookup(["Joe Low", "Ann Coe"])
    changes = {"kept": [few], "candidates": 9}
    found = measured(options, model, model, **changes)
    joe, ann = found["people"]
    assert "prompts_won" not in joe and ann["prompts_won"] == 2
    assert joe["drift"] == pytest.approx(0, abs=1e-6)
    # Joe alone: where nobody was attacked there is no rate, not one of 0.
    assert found["shares_first/people"] == 1 and "shares_first/drift" in found
    assert "shares_first/tpr" not in found
    (tmp_path / "few/1/2.jpg").unlink()
    with pytest.raises(ValueError, match="none of the 2 people of .* has 3 pictures"):
        measured(options, model, model, **changes)


def test_the_same_seed_gives_the_same_measures(options):
    models = FakeEncoder(0), FakeEncoder(1)
    changes = {"distractors": None, "recombined": 2}
    assert measured(options, *models, **changes) == measured(options, *models, **changes)


def test_a_neighbour_may_be_taken_for_their_forgotten_namesake(options):
    evaluation = Neighbours(Neighbours.Options(**options), 0)
    candidates = evaluation._attack.candidates
    assert candidates[: len(KEPT)] == list(KEPT) and len(set(candidates)) == options["candidates"]
    assert set(FORGET) <= set(candidates[len(KEPT) :])


def test_who_is_in_two_rosters_of_kept_people_counts_once(options):
    twice = {"kept": [options["kept"], options["kept"]], "distractors": None}
    once = {"distractors": None}
    assert measured(options, Words(), Words(), **twice) == measured(
        options, Words(), Words(), **once
    )


def test_who_is_kept_and_to_be_forgotten_is_refused_without_saying_who(options, tmp_path):
    both = write_roster(tmp_path, "both", ["Ann Lee", "JOE DOE"], 0)
    with pytest.raises(
        ValueError, match="kept: 1 of the 2 people have a name of .*forget.csv"
    ) as e:
        measured(options, Words(), Words(), kept=both)
    assert "DOE" not in str(e.value)


def test_a_model_that_diverged_is_not_taken_for_one_that_stayed(options):
    class Lost(Words):
        def encode_text(self, texts):
            return super().encode_text(texts) * float("nan")

    with pytest.raises(FloatingPointError, match="text embeddings are not finite"):
        measured(options, Lost(), Words(), distractors=None)
