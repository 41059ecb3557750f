"""Rows to steps: every objective's exact count in each, on every rank.

A loader worker draws its lanes' rows of a step; together the workers of all ranks draw the step.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import PurePath
from typing import Generic, Protocol, TypeVar
from zlib import crc32

from torch.utils.data import IterableDataset, get_worker_info

from trainer.api import Objective, Pair, Sample
from trainer.configuration.sections import DataConfig
from trainer.data.loader import Stopped
from trainer.data.readers import Reading
from trainer.data.remote import Patience
from trainer.data.rows import Rows
from trainer.data.skips import Skips
from trainer.data.streams import Dealt, Lane
from trainer.system.addresses import unsigned

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
            if (parts := dealt.parts_elsewhere) > 1:
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
