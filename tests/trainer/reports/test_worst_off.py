from __future__ import annotations

from tests.trainer.run_folders import person
from trainer.reports.groups import Group
from trainer.reports.worst_off import Kept, turned, worst_off


def test_kept_people_who_are_lost_and_who_come_back_are_counted_by_group():
    before_and_after = [(21, 0), (9, 1), (3, 0), (1, 21), (0, 0), (0, 2)]
    rows = [person(f"u{i}", "unseen", *own) for i, own in enumerate(before_and_after)]
    rows += [
        person("f", "forget", 21, 0),
        person("s", "unknown", 0, 3),
        person("r", "replayed", 5, 5),
    ]
    rows.append({"measure": "neighbours/people", "identity": "u1", "group": "unseen"})
    found = turned(rows)
    assert found == {
        "identity_inference/unseen/wrongly_forgotten": 2 / 4,
        "identity_inference/unseen/newly_recalled": 1 / 2,
        "identity_inference/replayed/wrongly_forgotten": 0.0,
    }
    lost = found["identity_inference/unseen/wrongly_forgotten"]
    assert lost.low < lost < lost.high
    assert [one.identity for one in worst_off(rows, [])] == ["u0", "u1", "u2"]


def test_of_several_attacks_each_person_counts_once_by_the_worst():
    """By the share of an attack's prompts: the short one has three, not 21."""
    short = {"measure": "identity_inference/short/people"}
    rows = [
        person("a", "unseen", 21, 14),  # a third
        person("a", "unseen", 3, 1) | short,  # two thirds
        person("b", "unseen", 21, 1),
        person("b", "unseen", 3, 2) | short,
        person("c", "unseen", 3, 2) | short,
    ]
    groups = [
        Group(f"identity_inference/{path}", "", "", None, count)
        for path, count in (("unseen", 21), ("short/unseen", 3))
    ]
    assert worst_off(rows, groups) == [
        Kept("b", "unseen", 21, 1),
        Kept("a", "unseen", 3, 1),
        Kept("c", "unseen", 3, 2),
    ]
