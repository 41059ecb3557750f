"""What measuring a checkpoint leaves in its folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, demo_without_attack
from trainer import Evaluation, Rows, rate_by_person
from trainer.configuration.config import load_config
from trainer.evaluate import evaluate_checkpoint, measure
from trainer.testing import FakeEncoder

ROSTERS = "runs/world/rosters"
ATTACK = "evaluations.identity_inference"
NEAR = (
    f"{{kind: neighbours, forget: {ROSTERS}/forget.csv, candidates: 20, pictures: 4, "
    f"kept: [{ROSTERS}/attack_unseen.csv, {ROSTERS}/attack_replayed.csv], "
    "distractors: runs/world/names/distractors.txt}"
)


@pytest.fixture(scope="module")
def folder(small_world):
    """The demo's attack and its neighbours, of the tiny CLIP beside one of random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_world)
        changes = [
            "model.random_weights=true",
            f"{ATTACK}.candidates=20",
            f"{ATTACK}.pictures=4",
            f"{ATTACK}.variants=[initials, typo_1]",
            f"evaluations.neighbours={NEAR}",
            "output=runs/measured-beside",
        ]
        config = load_config(str(REPOSITORY / "configs/demo.yaml"), changes)
        evaluate_checkpoint(config, "plugins/fictitious/clip")
    return small_world / "runs/measured-beside"


def test_nothing_to_measure_is_told(small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    config = load_config(str(REPOSITORY / "configs/demo.yaml"), ["evaluations={}"])
    with pytest.raises(ValueError, match="evaluations: the configuration names none; there is"):
        evaluate_checkpoint(config, "plugins/fictitious/clip")


def test_rates_have_their_intervals_beside_them(folder):
    results = json.loads((folder / "results.json").read_text())
    for moment in ("before", "after"):
        measures, intervals = results[moment], results["intervals"][moment]
        assert intervals.keys() <= measures.keys()
        assert {
            "identity_inference/forget/tpr",
            "identity_inference/unseen/closed_set",
            "identity_inference/unknown/found_only_by/any_variant",
            "neighbours/neighbours/drift",
        } <= intervals.keys()
        for name, (low, high) in intervals.items():
            assert low <= measures[name] <= high, name
    assert "identity_inference/forget/people" not in results["intervals"]["after"]


def test_rates_of_the_same_pictures_have_an_interval_of_their_change(folder):
    results = json.loads((folder / "results.json").read_text())
    tasks = {"zero_shot/colour/accuracy", "zero_shot/shape/accuracy"}
    assert tasks <= results["changes"].keys()
    for name, (low, high) in results["changes"].items():
        assert low <= results["after"][name] - results["before"][name] <= high, name


def test_people_have_a_line_each_with_before_and_after_under_their_pseudonyms(folder, small_world):
    text = (folder / "people.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    attacked = [row for row in rows if row["measure"] == "identity_inference/people"]
    assert len(attacked) == 13 and len({row["identity"] for row in attacked}) == 13
    for row in attacked:
        assert row["group"] in ("forget", "replayed", "unseen", "unknown")
        for moment in ("before", "after"):
            assert 0 <= row[moment]["prompts_won"] <= 21
            assert row[moment]["prompts_won_by"].keys() == {"initials", "typo_1"}
    near = [row for row in rows if row["measure"] == "neighbours/people"]
    assert len(near) == 8 and all(row["after"]["drift"] > 0 for row in near)
    for roster in (small_world / ROSTERS).glob("*.csv"):
        with roster.open(newline="", encoding="utf-8") as file:
            assert not [row for row in csv.DictReader(file) if row["name"] in text]


def test_single_people_are_in_no_other_file(folder):
    rows = [json.loads(line) for line in (folder / "people.jsonl").read_text().splitlines()]
    results = (folder / "results.json").read_text()
    assert not [row for row in rows if row["identity"] in results]
    assert "identity_inference/people" not in json.loads(results)["after"]


BROKEN = """
from trainer import Evaluation, hookimpl

class Broken(Evaluation):
    kind = "broken"

    def run(self, student, teacher):
        raise ValueError("nothing to measure")

@hookimpl
def trainer_evaluations():
    return [Broken]
"""


def test_where_an_evaluation_fails_the_others_are_measured_and_the_code_is_1(
    small_world, tmp_path, monkeypatch
):
    monkeypatch.chdir(small_world)
    demo_without_attack(small_world, "colour")
    (tmp_path / "broken_measure.py").write_text(BROKEN)
    changes = [
        f"plugins=[{tmp_path}/broken_measure.py]",
        "evaluations.broken={kind: broken}",
        "output=runs/measured-in-part",
    ]
    with pytest.raises(SystemExit) as left:
        evaluate_checkpoint(load_config("configs/colour.yaml", changes), "plugins/fictitious/clip")
    assert left.value.code == 1
    results = json.loads((small_world / "runs/measured-in-part/results.json").read_text())
    cause = "ValueError: nothing to measure (broken_measure.py:8)"
    assert results["failed"] == [{"evaluation": "broken", "step": 0, "cause": cause}]
    assert "zero_shot/colour/accuracy" in results["after"]


def test_a_measure_that_no_checkpoint_can_hold_fails_alone():
    class Odd(Evaluation):
        kind = "odd"

        def run(self, student, teacher):
            yield "people", Rows([{"identity": "a1", "won": np.int64(1)}])

    class Grouped(Evaluation):
        kind = "grouped"

        def run(self, student, teacher):
            yield "accuracy", {"red": 0.5}

    class Counted(Evaluation):
        kind = "counted"

        def run(self, student, teacher):
            yield "tpr", rate_by_person(np.array([1, 2]), np.array([2, 2]))

    model = FakeEncoder(0)
    made = {cls.kind: cls(cls.Options(), 0) for cls in (Odd, Grouped, Counted)}
    found, failed = measure(made, model, model)
    assert found == {"counted/tpr": 0.75} and "int64 is not JSON serializable" in failed["odd"]
    assert "grouped gives accuracy as dict; a float" in failed["grouped"]


def test_a_folder_of_a_run_that_trained_is_not_measured_in(small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    demo_without_attack(small_world, "colour")
    trained = Path("runs/that-trained")
    (trained / "checkpoints").mkdir(parents=True)
    (trained / "interrupted").write_text("20\n")
    with pytest.raises(FileExistsError, match="of a run that trained; name another to measure in"):
        evaluate_checkpoint(load_config("configs/colour.yaml", [f"output={trained}"]), None)
    assert sorted(path.name for path in trained.iterdir()) == ["checkpoints", "interrupted"]


def test_no_model_is_told_of_where_none_is_written(small_world, monkeypatch, capsys):
    monkeypatch.chdir(small_world)
    demo_without_attack(small_world, "colour")
    config = load_config("configs/colour.yaml", ["output=runs/measured-alone"])
    evaluate_checkpoint(config, None)
    told = capsys.readouterr().out
    assert "\nreport: runs/measured-alone/report.html\n" in told and "model:" not in told
