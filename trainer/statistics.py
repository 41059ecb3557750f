"""How sure a measure is: rates and areas with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
Z = 1.959963984540054  # the normal's quantile at (1 + CONFIDENCE) / 2


class Cases(NamedTuple):
    """What a rate is of: of each person or picture the hits, and out of how many."""

    hits: Sequence[int]
    totals: Sequence[int]


class Estimate(float):
    """A measure that knows its interval; a plain number to whoever does not ask.

    cases: by which it can be compared, case by case, with what another model does with the same.
    """

    low: float
    high: float
    cases: Cases | None

    def __new__(cls, value: float, low: float, high: float, cases: Cases | None = None) -> Estimate:
        estimate = super().__new__(cls, value)
        estimate.low, estimate.high, estimate.cases = float(low), float(high), cases
        return estimate

    def __reduce__(self):
        return Estimate, (float(self), self.low, self.high, self.cases)


def rate(hits: int, total: int) -> Estimate:
    """A share of independent cases with Wilson's score interval. Raises ValueError of none."""
    if not 0 <= hits <= total or not total:
        raise ValueError(f"a rate needs 0 <= hits <= total > 0, found {hits} of {total}")
    return _wilson(hits / total, total)


def rate_by_person(hits: Sequence[int], totals: Sequence[int]) -> Estimate:
    """A share of cases of which each person has several, such as pictures named right.

    A person's cases are alike: the interval is Wilson's as if all of a person's had come out the
    same, which is as wide as it could be. Of people with as many cases each, one case a person; of
    others as few as Kish's effective number (Survey Sampling, 1965).
    """
    if not 0 <= sum(hits) <= sum(totals) or not sum(totals):
        raise ValueError(f"a rate needs 0 <= hits <= total > 0, found {sum(hits)} of {sum(totals)}")
    people = sum(totals) ** 2 / sum(total**2 for total in totals)
    found = _wilson(sum(hits) / sum(totals), people)
    # Of whatever numbers they are, JSON's: a checkpoint holds them.
    cases = Cases(list(map(int, hits)), list(map(int, totals)))
    return Estimate(found, found.low, found.high, cases)


def paired_change(before: Cases, after: Cases) -> Estimate | None:
    """The rate after less that before, of the same cases; None where they are others.

    What changed in both directions tells how sure it is: far surer than of two samples, where few
    did. The adjusted Wald interval, with a case more that was lost and one more that was won
    (Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012), of cases that
    are the sum of several by the variance of a ratio.
    """
    if list(before.totals) != list(after.totals) or not any(before.totals):
        return None
    totals = np.array(before.totals, dtype=np.float64)
    gained = np.asarray(after.hits, dtype=np.float64) - np.asarray(before.hits, dtype=np.float64)
    change, usual = gained.sum() / totals.sum(), totals[totals > 0].mean()
    totals, gained = np.append(totals, [usual, usual]), np.append(gained, [usual, -usual])
    middle = gained.sum() / totals.sum()
    half = Z * math.sqrt(((gained - middle * totals) ** 2).sum()) / totals.sum()
    low, high = min(change, middle - half), max(change, middle + half)
    return Estimate(change, max(-1.0, low), min(1.0, high))


def _wilson(share: float, total: float) -> Estimate:
    z2 = Z * Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # Rounding may put an end on the wrong side of a share of 0 or 1.
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def mean(values: Sequence[float]) -> Estimate:
    """Mean of independent cases, such as people, with the normal approximation's interval."""
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("a mean needs a value")
    error = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.inf
    middle = float(found.mean())
    return Estimate(middle, middle - Z * error, middle + Z * error)


def quantile(values: Sequence[float], share: float) -> Estimate:
    """The value that this share of independent cases does not exceed, and its interval.

    The interval's ends are values too: those between which the quantile lies whatever the
    distribution (Conover, Practical Nonparametric Statistics, section 3.2), infinite where there
    are too few values to tell.
    """
    found = np.sort(np.asarray(values, dtype=np.float64))
    if not len(found) or not 0 < share < 1:
        raise ValueError(f"a quantile needs a value and 0 < share < 1, found {len(found)}, {share}")
    # How many of n values lie below the quantile is binomial.
    middle, half = len(found) * share, Z * math.sqrt(len(found) * share * (1 - share))
    ends = np.array([-math.inf, *found, math.inf])
    low = ends[max(0, math.floor(middle - half))]
    high = ends[min(len(ends) - 1, math.ceil(middle + half) + 1)]
    return Estimate(float(np.quantile(found, share)), low, high)


ROC_STEPS = 50  # of a curve


def roc(positives: Sequence[float], negatives: Sequence[float]) -> list[float]:
    """The share of positives above a threshold, where 0, 1/50, ... 1 of the negatives are."""
    from sklearn.metrics import roc_curve

    truth = np.repeat([1, 0], [len(positives), len(negatives)])
    wrong, right, _ = roc_curve(truth, np.concatenate([positives, negatives]))
    return np.interp(np.linspace(0, 1, ROC_STEPS + 1), wrong, right).tolist()


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> Estimate:
    """How often a positive scores above a negative, ties half; interval of Hanley and McNeil.

    (Radiology 143, 1982; the logit of it, so that it stays within 0 and 1.)
    """
    num_positive, num_negative = len(positives), len(negatives)
    # Counted: an area summed up of trapezoids misses 1 by rounding, and the case below.
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives).sum()
    not_above = np.searchsorted(ranked, positives, side="right").sum()
    area = float((below + not_above) / (2 * num_positive * num_negative))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area)
        + (num_positive - 1) * (q1 - area**2)
        + (num_negative - 1) * (q2 - area**2)
    ) / (num_positive * num_negative)
    if not 0 < area < 1:  # the logit has none there: the rule of three instead
        margin = 3 / min(num_positive, num_negative)
        return Estimate(area, max(0.0, area - margin), min(1.0, area + margin))
    logit = math.log(area / (1 - area))
    half = Z * math.sqrt(variance) / (area * (1 - area))
    # The logistic function, which as one of exp overflows where few cases bound nothing.
    low, high = ((1 + math.tanh((logit + sign * half) / 2)) / 2 for sign in (-1, 1))
    return Estimate(area, low, high)
