from __future__ import annotations

import json
from math import inf

import pytest

from trainer import Estimate, Rows, rate, rate_by_person
from trainer.measures import changes, intervals, packed, people, unpacked, without_people

MEASURES = {
    "attack/forget/tpr": rate(3, 4),
    "attack/forget/prompts_won": [1.0, 3.0],
    "attack/forget/people": 4.0,
    "attack/drift": Estimate(0.5, -inf, inf),
    "task/accuracy": rate_by_person([1, 0, 1], [1, 1, 1]),
    "attack/people": Rows([{"identity": "ab12", "group": "forget", "prompts_won": 3}]),
}


def test_what_is_logged_tells_nothing_of_single_people_and_has_plain_numbers():
    logged = without_people(MEASURES)
    assert list(logged) == list(MEASURES)[:-1]
    assert type(logged["attack/forget/tpr"]) is float and logged["attack/forget/tpr"] == 0.75
    assert logged["attack/forget/prompts_won"] == [1.0, 3.0]


def test_intervals_are_of_the_measures_that_have_a_finite_one():
    tpr = MEASURES["attack/forget/tpr"]
    task = MEASURES["task/accuracy"]
    assert intervals(MEASURES) == {
        "attack/forget/tpr": (tpr.low, tpr.high),
        "task/accuracy": (task.low, task.high),
    }


def test_measures_come_back_from_json_as_they_were():
    back = unpacked(json.loads(json.dumps(packed(MEASURES))))
    assert back == MEASURES and intervals(back) == intervals(MEASURES)
    assert {name: type(value) for name, value in back.items()} == {
        name: type(value) for name, value in MEASURES.items()
    }
    assert (back["attack/drift"].low, back["attack/drift"].high) == (-inf, inf)
    assert changes(back, MEASURES) == changes(MEASURES, MEASURES) != {}


def test_a_change_has_an_interval_where_both_moments_took_the_same_cases():
    after = MEASURES | {"task/accuracy": rate_by_person([1, 1, 1], [1, 1, 1])}
    found = changes(MEASURES, after)
    assert list(found) == ["task/accuracy"]  # of the attack's share nobody kept the cases
    low, high = found["task/accuracy"]
    assert low < 1 / 3 < high
    assert changes(MEASURES, {"task/accuracy": rate_by_person([1, 1], [1, 1])}) == {}


def test_plain_measures_of_an_earlier_checkpoint_are_read_as_they_are():
    assert unpacked({"a": 0.5, "b": [1.0, 2.0]}) == {"a": 0.5, "b": [1.0, 2.0]}


def test_each_person_has_one_row_with_both_moments():
    before = {"attack/people": Rows([{"identity": "a", "group": "forget", "won": 3}])}
    after = {
        "attack/people": Rows(
            [
                {"identity": "b", "group": "unseen", "won": 9},
                {"identity": "a", "group": "forget", "won": 0},
            ]
        ),
        "neighbours/people": Rows([{"identity": "a", "drift": 0.5}]),
        "attack/tpr": 0.5,
    }
    assert people(before, after) == [
        {
            "measure": "attack/people",
            "identity": "a",
            "group": "forget",
            "before": {"won": 3},
            "after": {"won": 0},
        },
        {"measure": "attack/people", "identity": "b", "group": "unseen", "after": {"won": 9}},
        {"measure": "neighbours/people", "identity": "a", "after": {"drift": 0.5}},
    ]
    assert before["attack/people"] == [{"identity": "a", "group": "forget", "won": 3}]


@pytest.mark.parametrize("measures", [{}, {"a": 0.5}])
def test_without_rows_there_is_nobody(measures):
    assert people(measures, measures) == []
