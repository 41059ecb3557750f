"""Samples to one objective's rows: what each lane gives next, unless an objective vetoes it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from random import Random

from trainer.api import BadSample, Objective, Pair, Sample, Tower
from trainer.data.skips import Skips
from trainer.data.streams import Lane
from trainer.system.failures import cause

# Samples of a lane in a row that no objective can use: not bad luck, and more than a shard has.
MAX_UNUSABLE = 100_000


class TurnRandom(Random):
    """Begins anew for each turn, seeded when first used: most pairs draw nothing, and to seed takes
    several times as long as to read a caption."""

    _turn: str | None = None

    def begin(self, turn: str) -> None:
        self._turn = turn
        self.gauss_next = None  # of a turn before

    def _seed_once(self) -> None:
        if self._turn is not None:
            turn, self._turn = self._turn, None
            self.seed(turn)  # hashed by SHA-512, not by hash()

    # All that Random gives comes from these.
    def random(self) -> float:
        self._seed_once()
        return super().random()

    def getrandbits(self, k: int) -> int:
        self._seed_once()
        return super().getrandbits(k)

    def getstate(self):
        self._seed_once()
        return super().getstate()


class Rows:
    """One objective's rows of the lanes at hand."""

    def __init__(
        self, name: str, objectives: Mapping[str, Objective], lanes: dict[int, Lane], seed: int
    ):
        self._name, self._objective = name, objectives[name]
        self._objectives, self._lanes, self._seed = objectives, lanes, seed
        self._rng = TurnRandom()
        self._passed = Skips()  # empty between rows, for nearly all rows
        self._not_its = [
            f"{model}_{tower.value}"
            for tower in Tower
            if tower not in self._objective.towers
            for model in ("student", "teacher")
        ]

    @property
    def positions(self) -> list[list[int]]:
        return [[number, *lane.state] for number, lane in self._lanes.items()]

    def draw(self, turn: int, num_lanes: int, skips: Skips) -> tuple[Sample, Pair]:
        """The pair of this turn, and the next sample of its lane, of which it is made.

        Raises ValueError where none serves.
        """
        lane = self._lanes[turn % num_lanes]
        self._rng.begin(f"{self._seed} {self._name} {turn}")
        passed, laps = self._passed, lane.laps
        for sample in islice(lane, MAX_UNUSABLE):
            found = self._found(sample, turn, passed)
            if found is not None:
                skips.used += 1
                if passed.reasons:
                    skips += passed
                    self._passed = Skips()
                return found
            if lane.laps > laps + 1:  # a whole one lies between
                if not lane.stand_in():
                    break
                laps = lane.laps
        counts = ", ".join(f"{reason} {count}" for reason, count in passed.reasons.most_common())
        where = "".join(f", at {shard} first" for (shard, _), _ in passed.bad.most_common(1))
        raise ValueError(
            f"objectives.{self._name}: none of {passed.reasons.total():,} samples in a row was of "
            f"use ({counts}); look at its shards{where}"
        )

    def _found(
        self, sample: Sample | BadSample, turn: int, passed: Skips
    ) -> tuple[Sample, Pair] | None:
        """None where it is of no use; why is counted."""
        try:
            if isinstance(sample, BadSample):
                raise sample
            veto = self._veto(sample)
            pair = None if veto else self._objective.pair(sample, turn, self._rng)
        except BadSample as bad:
            passed.reasons[bad.reason] += 1
            passed.bad[bad.shard or sample.shard, bad.reason] += 1
            return None
        except ValueError as error:  # Python's own words might quote whom it is about
            raise ValueError(f"objectives.{self._name}: {cause(error)}") from error
        if pair is None:
            passed.reasons[veto or f"of no use to {self._name}"] += 1
            return None
        for part in self._not_its:
            if getattr(pair, part) is not None:
                raise ValueError(
                    f"objectives.{self._name}: a pair of kind {self._objective.kind} has a {part}, "
                    "but it does not train that tower; the plugin must leave it out"
                )
        return sample, pair

    def _veto(self, sample: Sample) -> str | None:
        for name, other in self._objectives.items():
            if not other.accepts(sample):
                return f"vetoed by {name}"
        return None
