"""Exact shares of a step: which of an objective's rows is of which sort."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np


class Quotas:
    """Splits a step's `batch_size` rows by shares, as many of each sort in every step.

    The sorts are spread over the step by chance, and from step to step go on by a place: a rank
    gets about its share of each, the ranks together exactly, and no lane of samples serves one sort
    alone. needed: a sort that must have a row, or the start is refused.
    """

    def __init__(
        self, shares: Mapping[str, float], batch_size: int, seed: int, needed: str | None = None
    ):
        total = sum(shares.values())
        if not 0 < total < inf:
            raise ValueError(f"shares must be finite and one greater than 0, found {dict(shares)}")
        exact = {sort: batch_size * share / total for sort, share in shares.items()}
        self.counts = {sort: int(value) for sort, value in exact.items()}
        by_remainder = sorted(exact, key=lambda sort: self.counts[sort] - exact[sort])
        for sort in by_remainder[: batch_size - sum(self.counts.values())]:
            self.counts[sort] += 1
        if needed is not None and not self.counts[needed]:
            raise ValueError(
                f"batch_size {batch_size} leaves no row for {needed}; raise it or shares.{needed}"
            )
        self.batch_size = batch_size
        sorts = [sort for sort, number in self.counts.items() for _ in range(number)]
        order = np.random.default_rng([seed, batch_size]).permutation(batch_size)
        self._sorts = [sorts[i] for i in order]
        # How many of each sort stand before a place.
        self._before = {
            sort: np.cumsum([0, *(one == sort for one in self._sorts)]).tolist() for sort in shares
        }

    def of(self, turn: int) -> tuple[str, int]:
        """The row's sort, and which row of that sort it is, counted over the whole run."""
        step, place = divmod(turn, self.batch_size)
        begin = step % self.batch_size  # where this step's order begins
        place = (place + begin) % self.batch_size
        sort = self._sorts[place]
        before, each = self._before[sort], self.counts[sort]
        return sort, step * each + (before[place] - before[begin]) % each
