from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import Quotas, in_turn

SHARES = {"forget": 0.5, "replayed": 0.05, "other": 0.2, "recombined": 0.25}


@given(
    shares=st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda all: sum(all) > 0.01),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_every_step_has_the_same_count_within_one_of_its_share(shares, batch_size, seed):
    named = {f"{i}": share for i, share in enumerate(shares)}
    quotas = Quotas(named, batch_size, seed)
    for step in range(3):
        turns = range(step * batch_size, (step + 1) * batch_size)
        found = Counter(quotas.of(turn)[0] for turn in turns)
        assert {sort: found[sort] for sort in named} == quotas.counts
    for sort, share in named.items():
        assert abs(quotas.counts[sort] - batch_size * share / sum(shares)) < 1


def test_the_rows_of_a_sort_are_counted_through_the_run_without_a_gap():
    quotas = Quotas(SHARES, 20, seed=3)
    for sort in SHARES:
        nths = [nth for found, nth in map(quotas.of, range(20 * 45)) if found == sort]
        assert nths == list(range(45 * quotas.counts[sort]))


def test_no_place_of_a_step_and_so_no_lane_of_samples_has_one_sort_alone():
    """Of as many rows as lanes a place is a lane."""
    quotas = Quotas(SHARES, 64, seed=0)
    for place in range(64):
        found = Counter(quotas.of(64 * step + place)[0] for step in range(64))
        assert found == quotas.counts


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_rows_together_are_the_quotas(ranks):
    quotas = Quotas(SHARES, 320, seed=0)
    shared = [Counter(quotas.of(t)[0] for t in range(rank, 320, ranks)) for rank in range(ranks)]
    assert sum(shared, Counter()) == quotas.counts
    assert all(counts["forget"] > 0 and counts["recombined"] > 0 for counts in shared)


def test_each_row_of_a_sort_is_another_one_of_it():
    quotas = Quotas(SHARES, 60_000, seed=0)
    found = Counter(map(quotas.of, range(60_000)))
    assert max(found.values()) == 1
    assert {nth for sort, nth in found if sort == "forget"} == set(range(30_000))


def test_the_exact_shares_of_the_demo():
    counts = Quotas(SHARES, 320, seed=0).counts
    assert counts == {"forget": 160, "replayed": 16, "other": 64, "recombined": 80}


def test_another_seed_spreads_the_sorts_otherwise():
    orders = {tuple(map(Quotas(SHARES, 40, seed).of, range(40))) for seed in (0, 0, 1)}
    assert len(orders) == 2


@pytest.mark.parametrize("share", [0.0, float("inf"), float("nan")])
def test_shares_of_nothing_or_of_everything_are_refused(share):
    with pytest.raises(ValueError, match="shares must be finite and one greater than 0, found {'a"):
        Quotas({"a": share}, 8, seed=0)


def test_a_batch_without_a_row_of_the_needed_sort_is_refused():
    with pytest.raises(ValueError, match="batch_size 2 leaves no row for a; raise it or shares.a"):
        Quotas({"a": 0.1, "b": 0.9}, 2, seed=0, needed="a")


def test_100_000_people_each_have_a_turn_before_any_has_a_second():
    people = 100_000
    for lap in range(2):
        taken = [in_turn(lap * people + turn, people, seed=3) for turn in range(people)]
        assert sorted(taken) == list(range(people)) and taken[:100] != list(range(100))
