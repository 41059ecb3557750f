"""Rows to batches: a step's captions as tokens and pictures as pixels, each that repeats once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from trainer.api import Objective, Pair
from trainer.clip import Clip
from trainer.config import DataConfig
from trainer.preprocess import Prepare, Tokenizer
from trainer.skips import Skips
from trainer.steps import Positions, Row, Step, Steps, StreamState, check_sizes, draw

# The columns of a row: its turn, its label, and where its parts stand in tokens and pixels.
TURN, LABEL, STUDENT_TEXT, STUDENT_IMAGE, TEACHER_TEXT, TEACHER_IMAGE = range(6)
ABSENT = -1


@dataclass(frozen=True)
class Pixels:
    """(m, 3, H, W) uint8, in the parts that the workers made: to join them is to copy them."""

    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def to(self, device: torch.device) -> Pixels:
        return Pixels(tuple(part.to(device) for part in self.parts))

    def __getitem__(self, places: Tensor) -> Tensor:
        """places: (n,) int64, sorted, each once. A part of which all is wanted is not copied."""
        found, start = [], 0
        for part in self.parts:
            own = places[(places >= start) & (places < start + len(part))] - start
            found.append(part if len(own) == len(part) else part[own.to(part.device)])
            start += len(part)
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass
class Batch:
    """A step's rows of all objectives. A caption or picture that repeats is there once.

    tokens: (n, l) int64; pixels: m pictures; either may be empty. rows: by objective,
    (r, 6) int64, see the columns above. positions: where the lanes that it is from stand after it.
    """

    tokens: Tensor
    pixels: Pixels
    rows: dict[str, Tensor]
    skips: Skips
    positions: Positions

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
        skips = Skips()
        for part in parts:
            skips += part.skips
        return Batch(
            torch.cat(tokens),
            Pixels(tuple(one for part in parts for one in part.pixels.parts)),
            {name: own[own[:, TURN].argsort()] for name, own in joined.items()},
            skips,
            {name: [lane for part in parts for lane in part.positions[name]] for name in joined},
        )


@dataclass(frozen=True)
class Packer:
    """What a loader worker makes of the rows that it drew."""

    tokenize: Tokenizer
    prepare: Prepare

    def shrink(self, pair: Pair) -> Pair:
        """At once: it is in the processor's cache, and a step's pictures are not all held whole."""
        student, teacher = pair.student_image, pair.teacher_image
        if student is None and teacher is None:
            return pair
        small = None if student is None else self.prepare.resize(student)
        if teacher is not None and teacher is not student:
            return replace(pair, student_image=small, teacher_image=self.prepare.resize(teacher))
        return replace(
            pair, student_image=small, teacher_image=teacher if teacher is None else small
        )

    def __call__(self, step: Step) -> Batch:
        tokens, pixels, rows = pack(step.rows, self.tokenize, self.prepare)
        return Batch(tokens, pixels, rows, step.skips, step.positions)


def pack(
    drawn: Mapping[str, Sequence[Row]], tokenize: Tokenizer, prepare: Prepare
) -> tuple[Tensor, Pixels, dict[str, Tensor]]:
    """A batch's tokens, pixels and rows; equal captions, and pictures that are one object, once."""
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
            pictures.append(picture)
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
                for turn, _, pair in own
            ],
            dtype=torch.int64,
        ).reshape(-1, 6)
        for name, own in drawn.items()
    }
    # Channels last, as they are decoded: to turn them takes a tenth of the decoding.
    pixels = empty_shared(len(pictures), *prepare.size, 3).permute(0, 3, 1, 2)
    for place, picture in zip(pixels, pictures, strict=True):
        place.copy_(picture)
    return tokenize(list(texts)), Pixels((pixels,)), rows


def empty_shared(*shape: int) -> Tensor:
    """Of uint8; in a loader worker where the parent finds it without another copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own default_collate does.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


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
    ):
        check_sizes(objectives, data.lanes, ranks)
        packer = Packer(clip.tokenize, clip.prepare)
        min_side = max(clip.prepare.size)
        steps = Steps(objectives, data, seed, rank, ranks, packer.shrink, packer, min_side, resume)
        self.order = steps.order
        pad_id = clip.tokenize.pad_id
        self._batches = (Batch.join(parts, pad_id) for parts in draw(steps, data.workers))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)
