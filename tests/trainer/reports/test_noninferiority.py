from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.run_folders import intervals_of, measures
from trainer.reports.noninferiority import NOT_WORSE, OPEN, WORSE, difference, in_words, judged
from trainer.reports.results import Results
from trainer.statistics import Estimate, rate


def results_of(before: float, after: float, samples: int, margin: float = 0.01) -> Results:
    moments = {"before": measures(0, before), "after": measures(63, after)}
    intervals = {moment: intervals_of(found, samples) for moment, found in moments.items()}
    return Results(
        **moments,
        seconds={},
        steps=0,
        identities=64,
        skipped={},
        intervals=intervals,
        margin=margin,
    )


@pytest.mark.parametrize(
    "before, after, samples, verdict",
    [
        (0.90, 0.90, 20_000, NOT_WORSE),
        (0.90, 0.95, 1000, NOT_WORSE),
        (0.90, 0.85, 20_000, WORSE),
        (0.90, 0.90, 100, OPEN),
        (0.90, 0.89, 20_000, OPEN),
    ],
)
def test_a_task_is_not_worse_where_the_whole_interval_is_within_the_margin(
    before, after, samples, verdict
):
    found = judged(results_of(before, after, samples))
    assert [one.label for one in found] == ["colour", "shape"]
    assert {one.verdict for one in found} == {verdict}


def test_what_was_not_measured_after_cannot_be_told():
    known = results_of(0.90, 0.90, 20_000)
    after = {name: one for name, one in known.after.items() if "shape" not in name}
    found = judged(replace(known, after=after))
    assert [(one.label, one.verdict) for one in found] == [("colour", NOT_WORSE), ("shape", OPEN)]
    assert found[1].change is None and "cannot be told: shape" in in_words(found, 0.01)


def test_what_was_compared_case_by_case_is_judged_by_that():
    apart = results_of(0.90, 0.90, 100)
    assert {one.verdict for one in judged(apart)} == {OPEN}
    paired = replace(apart, changes={"zero_shot/colour/accuracy": (-0.004, 0.004)})
    found = judged(paired)
    assert [one.verdict for one in found] == [NOT_WORSE, OPEN]
    assert (found[0].change, found[0].change.low, found[0].change.high) == (0, -0.004, 0.004)


def test_a_wider_margin_forgives_more():
    assert judged(results_of(0.90, 0.89, 20_000, margin=0.02))[0].verdict == NOT_WORSE


def test_without_intervals_nothing_is_judged():
    moments = {"before": measures(0, 0.9), "after": measures(63, 0.9)}
    found = judged(Results(**moments, seconds={}, steps=0, identities=64, skipped={}))
    assert found == [] and in_words(found, 0.01) == ""


def test_the_difference_is_newcombes():
    """Table II (a) of the paper: 56/70 and 48/80 differ by 0.2, from 0.0524 to 0.3339."""
    found = difference(rate(48, 80), rate(56, 70))
    assert (found, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_the_interval_covers_the_true_difference_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    hits = rng.binomial(400, [[0.9], [0.88]], (2, 2000))
    found = [difference(rate(int(a), 400), rate(int(b), 400)) for a, b in hits.T]
    assert 0.94 < np.mean([one.low <= -0.02 <= one.high for one in found]) < 0.97


def test_each_verdict_is_told_with_its_tasks():
    found = judged(results_of(0.90, 0.90, 20_000))
    other = found[1]._replace(verdict=WORSE, change=Estimate(-0.1, -0.2, -0.05))
    assert in_words([found[0], other], 0.01) == (
        "Ordinary tasks, with a margin of 1 point: not worse: colour; worse: shape."
    )
