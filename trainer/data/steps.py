"""Samples to rows: every objective's exact count in every step, on every rank.

A loader worker draws its lanes' rows of a step; together the workers of all ranks draw the step.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, islice
from pathlib import PurePath
from random import Random
from typing import Generic, Protocol, TypeVar
from zlib import crc32

from torch.utils.data import IterableDataset, get_worker_info

from trainer.api import BadSample, Objective, Pair, Sample, Tower
from trainer.configuration.sections import DataConfig
from trainer.data.loader import Stopped
from trainer.data.readers import Reading
from trainer.data.remote import Patience
from trainer.data.skips import Skips
from trainer.data.streams import Dealt, Lane
from trainer.system.addresses import is_remote, unsigned
from trainer.system.failures import cause

# Samples of a lane in a row that no objective can use: not bad luck, and more than a shard has.
MAX_UNUSABLE = 100_000
Positions = dict[str, list[list[int]]]  # by objective: of each lane its number, then its state
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Builder(Protocol[T_co]):
    """Makes of a step's rows, in the worker that draws them, what the parent wants."""

    def add(self, name: str, turn: int, sample: Sample, pair: Pair) -> None:
        """A row of the objective `name`; turn: which of all its rows, over all ranks."""

    def finish(self, skips: Skips, positions: Positions) -> T_co:
        """positions: where the lanes at hand stand after the step."""


@dataclass(frozen=True)
class StreamState:
    """Where all lanes of a run stand after `step` steps. order: of each objective a digest of
    what its order follows from."""

    step: int
    order: dict[str, str]
    positions: Positions

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @staticmethod
    def from_json(text: str) -> StreamState:
        """Raises ValueError where it is none."""
        try:
            return StreamState(**json.loads(text))
        except (TypeError, ValueError):
            raise ValueError("it is no position in a stream that was noted here") from None


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


class Steps(IterableDataset, Generic[T]):
    """What one loader worker of one rank draws: its part of every step, without end.

    build: a new builder, for each step. resume: where to go on.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        data: DataConfig,
        seed: int,
        rank: int,
        ranks: int,
        build: Callable[[], Builder[T]],
        min_side: int | None = None,
        resume: StreamState | None = None,
    ):
        self.objectives, self.data, self.seed = dict(objectives), data, seed
        self.rank, self.ranks, self.min_side = rank, ranks, min_side
        self.build = build
        for objective in self.objectives.values():
            objective.min_side = min_side
        self.dealt = {
            name: Dealt.of(objective.options.shards or data.shards, data.lanes, seed)
            for name, objective in objectives.items()
        }
        if rank == 0 and not data.cache:
            self._warn_of_parts_elsewhere()
        self.order = {name: self._order_of(name) for name in objectives}
        self._first_step = resume.step if resume else 0
        self._positions = self._checked(resume) if resume else {}

    def _warn_of_parts_elsewhere(self) -> None:
        for name, dealt in self.dealt.items():
            shares = [share for source in dealt.shares for lane in source for share in lane]
            parts = max((one.parts for one in shares if is_remote(one.url)), default=1)
            if parts > 1:
                warnings.warn(
                    f"objectives.{name}: fewer shards elsewhere than lanes: each is fetched "
                    f"{parts} times for a lap, a part of it used; set data.cache to a folder "
                    "with room for them, or data.lanes to their number",
                    stacklevel=2,
                )

    def _order_of(self, name: str) -> str:
        """Of all that the order of an objective's samples follows from, but for where they lie."""
        dealt, data = self.dealt[name], self.data
        shards = [
            [(PurePath(unsigned(share.url)).name, share.part, share.parts) for share in lane]
            for source in dealt.shares
            for lane in source
        ]
        size = self.objectives[name].options.batch_size
        said = [shards, dealt.weights, size, data.lanes, data.shuffle, self.seed]
        return sha256(json.dumps(said).encode()).hexdigest()[:16]

    def _checked(self, resume: StreamState) -> dict[str, dict[int, list[int]]]:
        for name in {*self.order, *resume.order}:
            if self.order.get(name) != resume.order.get(name):
                raise ValueError(
                    f"objectives.{name}: its order of samples is not the one that the saved run "
                    "had, so it cannot go on there; put back its shards, batch_size, data.lanes, "
                    "data.shuffle and seed, or start anew"
                )
        return {
            name: {lane: state for lane, *state in positions}
            for name, positions in resume.positions.items()
        }

    def lanes(self) -> range:
        """Ours: of the rank's, which are every `ranks`-th, the worker's."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return range(self.rank, self.data.lanes, self.ranks)[first::stride]

    def __iter__(self) -> Iterator[T | Stopped]:
        try:
            lanes = self.lanes()
            rows = {name: self._rows(name, lanes) for name in self.objectives}
            for step in count(self._first_step):
                yield self._step(step, lanes, rows)
        except Exception as error:
            if get_worker_info() is None:
                raise
            yield Stopped.by(error)

    def _rows(self, name: str, lanes: Sequence[int]) -> Rows:
        data = self.data
        reading = Reading(
            with_pictures=self.objectives[name].reads_pictures,
            min_side=self.min_side,
            index=data.index,
            cache=data.cache,
            caption_column=data.caption_column,
            patience=Patience(seconds=data.patience_seconds),
        )
        # Objectives that read the same shards must not read them in step.
        seed = self.seed + crc32(name.encode())
        saved = self._positions.get(name, {})
        drawn = {
            lane: Lane(self.dealt[name], lane, seed, data.shuffle, reading, saved.get(lane, ()))
            for lane in lanes
        }
        return Rows(name, self.objectives, drawn, self.seed)

    def _step(self, step: int, lanes: range, rows: dict[str, Rows]) -> T:
        skips, builder = Skips(), self.build()
        for name, objective in self.objectives.items():
            first = step * objective.options.batch_size
            for turn in range(first, first + objective.options.batch_size):
                if turn % self.data.lanes in lanes:
                    builder.add(name, turn, *rows[name].draw(turn, self.data.lanes, skips))
        return builder.finish(skips, {name: own.positions for name, own in rows.items()})


def check_sizes(
    objectives: Mapping[str, Objective], lanes: int, ranks: int, parts: int = 1
) -> None:
    """Every rank gets the same count of every objective, or the start is refused.

    parts: backward passes a step, by which a rank divides its count again.
    """
    if lanes % ranks:
        raise ValueError(
            f"data.lanes is {lanes}, not a multiple of the {ranks} processes; launch as many as "
            f"divide it, or for a run that begins set data.lanes={-(-lanes // ranks) * ranks}"
        )
    for name, objective in objectives.items():
        size, wanted = objective.options.batch_size, ranks * parts
        if size % wanted:
            accumulating = f" times {parts} accumulation steps" if parts > 1 else ""
            raise ValueError(
                f"objectives.{name}.batch_size is {size}, not a multiple of the {ranks} "
                f"processes{accumulating}; "
                f"set objectives.{name}.batch_size={-(-size // wanted) * wanted}"
            )
