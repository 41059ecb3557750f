"""Rows to batches: a step's captions as tokens and pictures as pixels, each that repeats once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.api import Objective, Pair, Sample, Tower
from trainer.configuration.sections import DataConfig
from trainer.data.known_embeddings import KnownEmbeddings
from trainer.data.loader import PREFETCH, draw
from trainer.data.pixels import PART, Pixels, PixelWriter, Slots, slot_bytes
from trainer.data.skips import Skips
from trainer.data.steps import Positions, Steps, StreamState, check_sizes
from trainer.models.clip import Clip
from trainer.models.preprocess import Prepare, Tokenizer

# The columns of a row: its turn, its label, and where its parts stand in tokens and pixels. Where
# it is known what the teacher makes of a part, that is absent, and stands among the known.
TURN, LABEL, STUDENT_TEXT, STUDENT_IMAGE, TEACHER_TEXT, TEACHER_IMAGE = range(6)
KNOWN_TEXT, KNOWN_IMAGE, NUM_COLUMNS = range(6, 9)
ABSENT = -1
NONE_KNOWN = torch.empty(0, 0)
IN_HAND = 2  # of a worker's batches, the parent's, beside those loaded ahead


@dataclass
class Batch:
    """A step's rows of all objectives. A caption or picture that repeats is there once.

    tokens: (n, l) int64; pixels: m pictures; either may be empty. rows: by objective,
    (r, 8) int64, see the columns above. positions: where the lanes that it is from stand after it.
    shards: that it is from. known: embeddings of captions and of pictures, (k, d) each.
    """

    tokens: Tensor
    pixels: Pixels
    rows: dict[str, Tensor]
    skips: Skips
    positions: Positions
    shards: frozenset[str]
    known: tuple[Tensor, Tensor] = field(default_factory=lambda: (NONE_KNOWN, NONE_KNOWN))

    # From a worker by the pipe: through shared memory each would take as long as two pictures do.
    def __getstate__(self) -> dict:
        rows = {name: own.numpy() for name, own in self.rows.items()}
        known = tuple(own.numpy() for own in self.known)
        return vars(self) | {"tokens": self.tokens.numpy(), "rows": rows, "known": known}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self.tokens = torch.from_numpy(state["tokens"])
        self.rows = {name: torch.from_numpy(own) for name, own in state["rows"].items()}
        text, image = map(torch.from_numpy, state["known"])
        self.known = text, image

    def split(self, count: int) -> list[Batch]:
        """Equal parts of each objective's rows, over the same captions and pictures."""
        if count == 1:
            return [self]
        chunks = {name: own.chunk(count) for name, own in self.rows.items()}
        return [
            replace(self, rows={name: own[part] for name, own in chunks.items()})
            for part in range(count)
        ]

    def received(self, slots: Slots) -> Batch:
        """Of a worker, with the pictures that it wrote."""
        return replace(self, pixels=slots.received(self.pixels))

    def seen_by(self, column: int) -> Tensor:
        """Which tokens, pixels or known embeddings one model needs: sorted, each once."""
        used = torch.cat([rows[:, column] for rows in self.rows.values()]).unique()
        return used[used != ABSENT]

    @staticmethod
    def join(parts: Sequence[Batch], pad_id: int) -> Batch:
        """The workers' parts of one step, in the order of their turns whoever made them."""
        if len(parts) == 1:
            return parts[0]
        length = max(part.tokens.shape[1] for part in parts)
        rows: dict[str, list[Tensor]] = {name: [] for name in parts[0].rows}
        before = [0, 0, 0, 0]  # tokens, pixels, known of either, of the parts before
        for part in parts:
            seen, known = before[:2], before[2:]
            shift = torch.tensor([0, 0, *seen, *seen, *known])
            for name, own in part.rows.items():
                rows[name].append(torch.where(own == ABSENT, own, own + shift))
            sizes = [len(part.tokens), len(part.pixels), *map(len, part.known)]
            before = [sum(both) for both in zip(before, sizes, strict=True)]
        joined = {name: torch.cat(own) for name, own in rows.items()}
        tokens = [F.pad(p.tokens, (0, length - p.tokens.shape[1]), value=pad_id) for p in parts]
        skips = Skips()
        for part in parts:
            skips += part.skips
        return Batch(
            torch.cat(tokens),
            Pixels(tuple(one for part in parts for one in part.pixels.parts)),
            {name: own[own[:, TURN].argsort()] for name, own in joined.items()},
            skips,
            {name: [lane for part in parts for lane in part.positions[name]] for name in joined},
            frozenset().union(*(part.shards for part in parts)),
            (_joined([p.known[0] for p in parts]), _joined([p.known[1] for p in parts])),
        )


def _joined(known: Sequence[Tensor]) -> Tensor:
    there = [own for own in known if len(own)]
    return torch.cat(there) if there else NONE_KNOWN


class BatchBuilder:
    """What a loader worker makes of rows as they are drawn: equal captions once, pictures at the
    model's size, written where the parent finds them, and what is known of either.
    """

    def __init__(
        self,
        names: Iterable[str],
        tokenize: Tokenizer,
        prepare: Prepare,
        slots: Slots | None = None,
        known: KnownEmbeddings | None = None,
    ):
        self._tokenize, self._pixels = tokenize, PixelWriter(prepare, slots)
        self._kept = known
        self._known: dict[Tower, list[np.ndarray]] = {tower: [] for tower in Tower}
        self._rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
        self._texts: dict[str, int] = {}
        self._shards: set[str] = set()

    def add(self, name: str, turn: int, sample: Sample, pair: Pair) -> None:
        seen = self._picture(pair.student_image)
        text, image = pair.teacher_text, pair.teacher_image
        known_text = known_image = ABSENT
        if self._kept is not None:
            known_text = self._known_place(name, Tower.TEXT, sample)
            known_image = self._known_place(name, Tower.IMAGE, sample)
            text = text if known_text == ABSENT else None
            image = image if known_image == ABSENT else None
        row = (
            turn,
            pair.label,
            self._text(pair.student_text),
            seen,
            self._text(text),
            seen if image is pair.student_image else self._picture(image),
            known_text,
            known_image,
        )
        self._rows[name].append(row)
        self._shards.add(sample.shard)

    def _known_place(self, name: str, tower: Tower, sample: Sample) -> int:
        assert self._kept is not None
        known = self._kept.find(name, tower, sample)
        if known is None:
            return ABSENT
        self._known[tower].append(known)
        return len(self._known[tower]) - 1

    def _text(self, text: str | None) -> int:
        return ABSENT if text is None else self._texts.setdefault(text, len(self._texts))

    def _picture(self, picture: Tensor | None) -> int:
        return ABSENT if picture is None else self._pixels.add(picture)

    def finish(self, skips: Skips, positions: Positions) -> Batch:
        rows = {
            name: torch.tensor(own, dtype=torch.int64).reshape(-1, NUM_COLUMNS)
            for name, own in self._rows.items()
        }
        tokens, pixels = self._tokenize(list(self._texts)), self._pixels.finish()
        text, image = (
            torch.from_numpy(np.stack(own)) if own else NONE_KNOWN for own in self._known.values()
        )
        shards = frozenset(self._shards)
        return Batch(tokens, pixels, rows, skips, positions, shards, (text, image))


def _slots_each(objectives: Mapping[str, Objective], data: DataConfig, ranks: int) -> int:
    """Of a worker, for its share of the pictures of each step that it or the parent has."""
    share = ranks * max(1, data.workers)  # of a step's pictures a worker's, about
    num = sum(
        math.ceil(one.options.batch_size / share)
        for one in objectives.values()
        if Tower.IMAGE in one.towers
    )
    return (PREFETCH + IN_HAND) * math.ceil(num / PART)


def shared_bytes(
    objectives: Mapping[str, Objective], data: DataConfig, size: tuple[int, int], ranks: int
) -> int:
    """Shared memory that a process takes for its workers. size: of a picture."""
    return data.workers * _slots_each(objectives, data, ranks) * slot_bytes(size)


class Batches:
    """This rank's batches without end, from step 0 or where the saved state stands.

    order: of each objective a digest of what its order follows from. Raises ValueError and
    FileNotFoundError: for sizes and missing shards at once, for data of no use when it comes to
    them, in one line wherever it was read.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        data: DataConfig,
        clip: Clip,
        seed: int,
        rank: int,
        ranks: int,
        resume: StreamState | None = None,
        known: KnownEmbeddings | None = None,
    ):
        check_sizes(objectives, data.lanes, ranks)
        slots = Slots(data.workers, _slots_each(objectives, data, ranks), clip.prepare.size)
        build = partial(BatchBuilder, list(objectives), clip.tokenize, clip.prepare, slots, known)
        min_side = max(clip.prepare.size)
        steps = Steps(objectives, data, seed, rank, ranks, build, min_side, resume)
        self.order = steps.order
        pad_id = clip.tokenize.pad_id
        self._batches = (
            Batch.join([part.received(slots) for part in parts], pad_id)
            for parts in draw(steps, data.workers)
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Lets the loader's workers go: they outlive a signal, so a run that fails must say so."""
        self._batches.close()
