from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from trainer import Estimate, mean, quantile, rate, rate_by_person, roc, roc_auc
from trainer.reports.noninferiority import difference
from trainer.statistics import CONFIDENCE, Cases, Z, paired_change

DRAWS = 2000


def share_covered(estimates, truth: float) -> float:
    return np.mean([one.low <= truth <= one.high for one in estimates])


@given(total=st.integers(1, 10**6), hits=st.floats(0, 1))
def test_a_rate_has_the_interval_that_scipy_gives(total, hits):
    hits = round(hits * total)
    found = rate(hits, total)
    wanted = binomtest(hits, total).proportion_ci(method="wilson")
    assert found == hits / total
    assert found.low == pytest.approx(wanted.low, abs=1e-9)
    assert found.high == pytest.approx(wanted.high, abs=1e-9)
    assert 0 <= found.low <= found <= found.high <= 1


@pytest.mark.parametrize(("share", "total"), [(0.5, 64), (0.95, 64), (0.02, 256)])
def test_a_rates_interval_holds_the_truth_as_often_as_it_says(share, total):
    draws = np.random.default_rng(0).binomial(total, share, DRAWS)
    assert 0.93 <= share_covered([rate(int(hits), total) for hits in draws], share) <= 0.975


def test_the_rate_of_all_alike_people_is_no_surer_than_that_of_the_people():
    """However many pictures of each: a picture more of the same person tells nothing new."""
    rng, truth = np.random.default_rng(0), 0.7
    found = []
    for _ in range(DRAWS):
        knows = rng.random(64) < truth
        found.append(rate_by_person((knows * 420).tolist(), [420] * 64))
        assert found[-1] == knows.mean()
    assert share_covered(found, truth) >= 0.93


def test_people_without_a_case_do_not_make_a_rate_surer():
    found = rate_by_person([3, 0, 0], [4, 4, 0])
    assert found == 3 / 8
    assert (found.low, found.high) == pytest.approx(
        (rate_by_person([3, 0], [4, 4]).low, rate_by_person([3, 0], [4, 4]).high)
    )


def test_of_unequal_people_a_rate_is_as_sure_as_of_their_effective_number():
    """Who has nearly all cases decides nearly alone."""
    found = rate_by_person([150, *[0] * 50], [150, *[1] * 50])
    alike = rate(1, 2)
    assert found == 150 / 200 and found.high - found.low > 0.8 * (alike.high - alike.low)


def change_of(lost: int, won: int, alike: int):
    ones = [1] * (lost + won + alike)
    before, after = [1] * lost + [0] * won, [0] * lost + [1] * won
    return paired_change(Cases(before + [1] * alike, ones), Cases(after + [1] * alike, ones))


@given(lost=st.integers(0, 50), won=st.integers(0, 50), alike=st.integers(1, 500))
def test_a_paired_change_has_the_interval_of_bonett_and_price(lost, won, alike):
    found, total = change_of(lost, won, alike), lost + won + alike + 2
    p_lost, p_won = (lost + 1) / total, (won + 1) / total
    half = Z * np.sqrt((p_lost + p_won - (p_won - p_lost) ** 2) / total)
    low, high = p_won - p_lost - half, p_won - p_lost + half
    value = (won - lost) / (total - 2)
    assert found == pytest.approx(value)
    wanted = (max(-1, min(low, value)), min(1, max(high, value)))
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("cases_each", [1, 20])
def test_a_paired_changes_interval_holds_the_truth_as_often_as_it_says(cases_each):
    """A person of several pictures loses or wins them together: they are alike."""
    rng, people, truth = np.random.default_rng(0), 300, -0.02
    found = []
    for drawn in rng.random((DRAWS, people)):
        before = np.where(drawn < 0.9, cases_each, 0)
        after = before - np.where(drawn < 0.03, cases_each, 0)
        after = after + np.where(drawn > 0.99, cases_each, 0)
        totals = [cases_each] * people
        found.append(paired_change(Cases(before.tolist(), totals), Cases(after.tolist(), totals)))
    assert 0.935 <= share_covered(found, truth) <= 0.985


def test_few_cases_that_changed_are_surer_than_two_samples():
    ones, known = [1] * 1200, [1] * 1080 + [0] * 120
    lost = [0] * 6 + known[6:]
    found = paired_change(Cases(known, ones), Cases(lost, ones))
    apart = difference(rate(1080, 1200), rate(1074, 1200))
    assert found == pytest.approx(apart)
    assert found.high - found.low < (apart.high - apart.low) / 4


def test_other_cases_are_not_compared():
    few = paired_change(Cases([0] * 5, [1] * 5), Cases([1] * 5, [1] * 5))
    assert few.high == 1 and 0 < few.low < few
    assert paired_change(Cases([1, 0], [1, 1]), Cases([1], [1])) is None
    assert paired_change(Cases([1, 0], [1, 1]), Cases([1, 0], [1, 0])) is None
    assert paired_change(Cases([], []), Cases([], [])) is None


def test_a_mean_has_the_normal_interval():
    values = [0.1, 0.4, 0.7, 0.2]
    found = mean(values)
    error = np.std(values, ddof=1) / 2
    low, high = norm.interval(CONFIDENCE, np.mean(values), error)
    assert found == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert norm.ppf((1 + CONFIDENCE) / 2) == pytest.approx(Z)


def test_a_means_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(1.0, (DRAWS, 200))
    assert 0.92 <= share_covered([mean(row) for row in draws], 1.0) <= 0.975


def test_one_value_tells_nothing_of_its_mean():
    found = mean([0.5])
    assert found == 0.5 and (found.low, found.high) == (-np.inf, np.inf)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_quantile_is_numpys_and_lies_in_its_interval(values, share):
    found = quantile(values, share)
    assert found == pytest.approx(np.quantile(values, share))
    assert found.low <= found <= found.high


@pytest.mark.parametrize(("share", "count"), [(0.95, 64), (0.95, 1000), (0.05, 500), (0.5, 30)])
def test_a_quantiles_interval_holds_the_truth_at_least_as_often_as_it_says(share, count):
    draws = np.random.default_rng(0).normal(size=(DRAWS, count))
    found = [quantile(row, share) for row in draws]
    assert share_covered(found, norm.ppf(share)) >= 0.94


def test_few_values_cannot_bound_a_high_quantile():
    assert quantile([1.0, 2.0, 3.0], 0.95).high == np.inf


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
@example([3], [0, 0, 1, 1, 1, 1, 2])  # all: no rounding
@example([5], [*[0] * 199_999, 5])  # all but one tie, of one: a wide interval of a steep logit
def test_an_area_is_how_often_a_positive_scores_above_a_negative(positives, negatives):
    pairs = np.subtract.outer(positives, negatives)
    found = roc_auc(positives, negatives)
    assert found == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2))
    assert 0 <= found.low <= found <= found.high <= 1


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_an_areas_interval_holds_the_truth_at_least_as_often_as_it_says(shift):
    rng, truth = np.random.default_rng(0), norm.cdf(shift / np.sqrt(2))
    found = [roc_auc(rng.normal(shift, 1, 64), rng.normal(0, 1, 192)) for _ in range(DRAWS // 4)]
    assert share_covered(found, truth) >= 0.93


def test_a_perfect_area_is_no_surer_than_its_few_cases():
    assert roc_auc([2, 3], [0, 1]) == roc_auc_score([1, 1, 0, 0], [2, 3, 0, 1]) == 1
    assert roc_auc([2] * 100, [1] * 30).low == pytest.approx(0.9)
    assert roc_auc([3] * 30, [0, 0, 1, 1, 1, 1, 2] * 30) == 1


def test_an_estimate_is_a_number_and_keeps_its_interval_when_it_is_copied():
    found = rate(1, 4)
    copy = pickle.loads(pickle.dumps(found))
    assert copy == 0.25 and (copy.low, copy.high) == (found.low, found.high)
    assert json.dumps(found) == "0.25" and found + 1 == 1.25 and isinstance(found, float)
    assert Estimate(0.5, 0, 1).low == 0.0


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: rate(0, 0), "needs 0 <= hits <= total > 0, found 0 of 0"),
        (lambda: rate(5, 4), "found 5 of 4"),
        (lambda: rate(-1, 4), "found -1 of 4"),
        (lambda: rate_by_person([], []), "found 0 of 0"),
        (lambda: rate_by_person([5], [4]), "found 5 of 4"),
        (lambda: mean([]), "a mean needs a value"),
        (lambda: quantile([], 0.5), "needs a value and 0 < share < 1, found 0, 0.5"),
        (lambda: quantile([1.0], 1.0), "found 1, 1.0"),
    ],
)
def test_nothing_is_no_measure(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()


def test_a_curve_tells_at_each_share_of_wrong_ones_how_many_are_right():
    assert roc([3.0, 2.0], [1.0, 0.0]) == [1.0] * 51
    assert roc([0.0, 1.0], [2.0, 3.0]) == [0.0] * 50 + [1.0]
    of_four = roc([4.0, 2.0], [3.0, 1.0])  # half at once, the other half past one wrong of two
    assert of_four[0] == 0.5 and of_four[24] == 0.5 and of_four[25:] == [1.0] * 26
    scores = np.random.default_rng(0).normal(size=(2, 4000))
    assert np.abs(np.array(roc(*scores.tolist())) - np.linspace(0, 1, 51)).max() < 0.05
