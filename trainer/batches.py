"""Samples to pairs to batches: every objective's exact count of rows, in every step, on every rank.

A loader worker makes its lanes' rows of a step; the parent only lays the workers' parts together.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from random import Random
from typing import NoReturn
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.api import BadSample, Objective, Pair, Sample, Tower
from trainer.clip import Clip
from trainer.config import DataConfig
from trainer.preprocess import Prepare, Tokenizer
from trainer.streams import Entry, deal, expand, read_lane

MAX_UNUSABLE = 10_000  # samples of a lane in a row that no objective can use: not bad luck

# The columns of a row: its turn, its label, and where its parts stand in tokens and pixels.
TURN, LABEL, STUDENT_TEXT, STUDENT_IMAGE, TEACHER_TEXT, TEACHER_IMAGE = range(6)
ABSENT = -1


@dataclass
class Batch:
    """A step's rows of all objectives. A caption or picture that repeats is there once.

    tokens: (n, l) int64; pixels: (m, 3, H, W) uint8; either may be empty. rows: by objective,
    (r, 6) int64, see the columns above. skipped: samples by reason.
    """

    tokens: Tensor
    pixels: Tensor
    rows: dict[str, Tensor]
    skipped: Counter[str] = field(default_factory=Counter)

    def seen_by(self, column: int) -> Tensor:
        """Which tokens or pixels one model needs: sorted, each once."""
        used = torch.cat([rows[:, column] for rows in self.rows.values()]).unique()
        return used[used != ABSENT]

    @staticmethod
    def join(parts: Sequence[Batch], pad_id: int) -> Batch:
        """The workers' parts of one step, in the order of their turns whoever made them."""
        if len(parts) == 1:
            return parts[0]
        length = max(part.tokens.shape[1] for part in parts)
        rows: dict[str, list[Tensor]] = {name: [] for name in parts[0].rows}
        num_tokens = num_pixels = 0
        for part in parts:
            shift = torch.tensor([0, 0, num_tokens, num_pixels, num_tokens, num_pixels])
            for name, own in part.rows.items():
                rows[name].append(torch.where(own == ABSENT, own, own + shift))
            num_tokens += len(part.tokens)
            num_pixels += len(part.pixels)
        joined = {name: torch.cat(own) for name, own in rows.items()}
        tokens = [F.pad(p.tokens, (0, length - p.tokens.shape[1]), value=pad_id) for p in parts]
        return Batch(
            torch.cat(tokens),
            torch.cat([part.pixels for part in parts]),
            {name: own[own[:, TURN].argsort()] for name, own in joined.items()},
            sum((part.skipped for part in parts), Counter()),
        )


class Rows:
    """One objective's rows of the lanes at hand."""

    def __init__(
        self,
        name: str,
        objectives: Mapping[str, Objective],
        lanes: dict[int, Iterator[Entry]],
        seed: int,
    ):
        self._name, self._objective = name, objectives[name]
        self._objectives, self._lanes, self._seed = objectives, lanes, seed

    def __call__(self, turn: int, num_lanes: int, skipped: Counter[str]) -> Pair:
        """The row of this turn, from the next sample of its lane that serves.

        Raises ValueError where none does.
        """
        lane = self._lanes[turn % num_lanes]
        rng = Random(f"{self._seed} {self._name} {turn}")  # hashed by SHA-512, not by hash()
        unusable: Counter[str] = Counter()
        for entry in islice(lane, MAX_UNUSABLE):
            try:
                sample = entry()
                veto = self._veto(sample)
                pair = None if veto else self._objective.pair(sample, turn, rng)
            except BadSample as bad:
                unusable[bad.reason] += 1
                continue
            if pair is not None:
                skipped.update(unusable)
                return pair
            unusable[veto or f"of no use to {self._name}"] += 1
        counts = ", ".join(f"{reason} {count}" for reason, count in unusable.most_common())
        raise ValueError(
            f"objectives.{self._name}: none of {MAX_UNUSABLE} samples in a row was of use "
            f"({counts}); look at its shards"
        )

    def _veto(self, sample: Sample) -> str | None:
        for name, other in self._objectives.items():
            if not other.accepts(sample):
                return f"vetoed by {name}"
        return None


@dataclass(frozen=True)
class Stopped:
    """What stopped a loader worker, for the parent to raise.

    The loader's own way makes of it an error whose message is a traceback.
    """

    message: str
    traceback: str
    is_the_users: bool  # to mend; of others the traceback is wanted

    @staticmethod
    def by(error: Exception) -> Stopped:
        told = "".join(traceback.format_exception(error))
        return Stopped(str(error), told, isinstance(error, (ValueError, OSError)))

    def stop(self) -> NoReturn:
        whole = f"in a loader worker:\n{self.traceback}"
        if self.is_the_users:
            raise ValueError(self.message) from RuntimeError(whole)
        raise RuntimeError(whole)


class Parts(IterableDataset):
    """What one loader worker of one rank makes: its part of every step, without end."""

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        data: DataConfig,
        tokenize: Tokenizer,
        prepare: Prepare,
        seed: int,
        rank: int,
        ranks: int,
    ):
        self.objectives, self.data, self.seed = dict(objectives), data, seed
        self.tokenize, self.prepare = tokenize, prepare
        self.rank, self.ranks = rank, ranks
        self.shares = {
            name: deal(expand(objective.options.shards or data.shards), data.lanes, seed)
            for name, objective in objectives.items()
        }

    def lanes(self) -> range:
        """Ours: of the rank's, which are every `ranks`-th, the worker's."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return range(self.rank, self.data.lanes, self.ranks)[first::stride]

    def __iter__(self) -> Iterator[Batch | Stopped]:
        try:
            lanes = self.lanes()
            rows = {name: self._rows(name, lanes) for name in self.objectives}
            for step in count():
                yield self._part(step, lanes, rows)
        except Exception as error:
            if get_worker_info() is None:
                raise
            yield Stopped.by(error)

    def _rows(self, name: str, lanes: Sequence[int]) -> Rows:
        with_pictures = Tower.IMAGE in self.objectives[name].towers
        # Objectives that read the same shards must not read them in step.
        seed = self.seed + crc32(name.encode())
        entries = {
            lane: read_lane(self.shares[name][lane], lane, seed, self.data.shuffle, with_pictures)
            for lane in lanes
        }
        return Rows(name, self.objectives, entries, self.seed)

    def _part(self, step: int, lanes: range, rows: dict[str, Rows]) -> Batch:
        skipped: Counter[str] = Counter()
        pairs = {}
        for name, objective in self.objectives.items():
            first = step * objective.options.batch_size
            turns = range(first, first + objective.options.batch_size)
            mine = [turn for turn in turns if turn % self.data.lanes in lanes]
            pairs[name] = [(turn, rows[name](turn, self.data.lanes, skipped)) for turn in mine]
        return pack(pairs, self.tokenize, self.prepare, skipped)


def pack(
    pairs: Mapping[str, Sequence[tuple[int, Pair]]],
    tokenize: Tokenizer,
    prepare: Prepare,
    skipped: Counter[str],
) -> Batch:
    """Pairs with their turns to tensors; equal captions, and pictures that are one object, once."""
    texts: dict[str, int] = {}
    places: dict[int, int] = {}
    pictures: list[Tensor] = []

    def text_place(text: str | None) -> int:
        return ABSENT if text is None else texts.setdefault(text, len(texts))

    def picture_place(picture: Tensor | None) -> int:
        if picture is None:
            return ABSENT
        if id(picture) not in places:
            places[id(picture)] = len(pictures)
            pictures.append(prepare.resize(picture))
        return places[id(picture)]

    rows = {
        name: torch.tensor(
            [
                (
                    turn,
                    pair.label,
                    text_place(pair.student_text),
                    picture_place(pair.student_image),
                    text_place(pair.teacher_text),
                    picture_place(pair.teacher_image),
                )
                for turn, pair in own
            ],
            dtype=torch.int64,
        ).reshape(-1, 6)
        for name, own in pairs.items()
    }
    if pictures:
        pixels = torch.stack(pictures)
    else:
        pixels = torch.empty(0, 3, *prepare.size, dtype=torch.uint8)
    return Batch(tokenize(list(texts)), pixels, rows, skipped)


def check_sizes(objectives: Mapping[str, Objective], lanes: int, ranks: int) -> None:
    """Every rank gets the same count of every objective, or the start is refused."""
    if lanes % ranks:
        raise ValueError(
            f"data.lanes is {lanes}, not a multiple of the {ranks} processes; "
            f"set data.lanes={-(-lanes // ranks) * ranks}"
        )
    for name, objective in objectives.items():
        size = objective.options.batch_size
        if size % ranks:
            raise ValueError(
                f"objectives.{name}.batch_size is {size}, not a multiple of the {ranks} "
                f"processes; set objectives.{name}.batch_size={-(-size // ranks) * ranks}"
            )


def stream_batches(
    objectives: Mapping[str, Objective],
    data: DataConfig,
    clip: Clip,
    seed: int,
    rank: int,
    ranks: int,
) -> Iterator[Batch]:
    """This rank's batches from step 0 on, without end.

    Raises ValueError and FileNotFoundError: for sizes and missing shards at once, for data of no
    use when it comes to them, in one line wherever it was read.
    """
    check_sizes(objectives, data.lanes, ranks)
    parts = Parts(objectives, data, clip.tokenize, clip.prepare, seed, rank, ranks)
    return _joined(parts, data.workers, clip.tokenize.pad_id)


def _joined(parts: Parts, workers: int, pad_id: int) -> Iterator[Batch]:
    prefetch = 4 if workers else None
    loader = DataLoader(parts, batch_size=None, num_workers=workers, prefetch_factor=prefetch)
    # The loader asks its workers in turn, so the parts of one step come one after the other.
    stream = iter(loader)
    try:
        while step := list(islice(stream, max(1, workers))):
            for part in step:
                if isinstance(part, Stopped):
                    part.stop()
            yield Batch.join(step, pad_id)
    finally:
        # Now: an error that is kept holds this frame, and garbage collection closes the workers'
        # queues in any order, then waits five seconds for each.
        del stream
