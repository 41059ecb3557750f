"""A step's pictures, from the loader workers that make them to the parent, without a copy.

Workers write to slots: shared memory that is used again when the parent let go of it. Memory made
anew for each batch costs half as much as to decode the pictures, for its pages are zeroed, mapped
twice and unmapped.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from trainer.models.preprocess import Prepare

PART = 64  # pictures that a worker makes room for at once, and that a slot holds
FREE, TAKEN = 0, 1


@dataclass(frozen=True)
class Filled:
    """What a worker sends in place of pixels: the first `count` pictures of a slot."""

    slot: int
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Pixels:
    """(m, 3, H, W) uint8, in the parts that the workers made: to join them is to copy them."""

    parts: tuple[Tensor, ...]  # Filled, while they are on their way

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def to(self, device: torch.device) -> Pixels:
        return Pixels(tuple(sent(part, device) for part in self.parts))

    def __getitem__(self, places: Tensor) -> Tensor:
        """places: (n,) int64, sorted, each once. A part of which all is wanted is not copied."""
        wanted, start = [], 0
        for part in self.parts:
            wanted.append(places[(places >= start) & (places < start + len(part))] - start)
            start += len(part)
        there = sent(torch.cat(wanted), self.parts[0].device).split([len(own) for own in wanted])
        found = [
            part if len(own) == len(part) else part[own]
            for own, part in zip(there, self.parts, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def slot_bytes(size: tuple[int, int]) -> int:
    return math.prod((PART, *size, 3))


class Slots:
    """Every worker's own `num_each`. Each costs its memory from the start, used or not: torch
    reserves what is shared, lest a worker die of a bus error when it writes there."""

    def __init__(self, num_workers: int, num_each: int, size: tuple[int, int]):
        self._num_each = num_each
        shape = (num_workers * num_each, PART, *size, 3)
        self._pixels = new_shared(*shape)  # `share_memory_` would make it twice, and copy
        self._states = torch.full(shape[:1], FREE, dtype=torch.uint8).share_memory_()

    def take(self, worker: int) -> int | None:
        """A free one of the worker's own; None while the parent holds them all. In the worker."""
        first = worker * self._num_each
        own = self._states[first : first + self._num_each].tolist()
        if FREE not in own:
            return None
        slot = first + own.index(FREE)
        self._states[slot] = TAKEN
        return slot

    def room(self, slot: int) -> Tensor:
        """(PART, H, W, 3) uint8, for the worker that took it."""
        return self._pixels[slot]

    def lend(self, filled: Filled) -> Tensor:
        """Its pictures, (count, 3, H, W) uint8, free again when no view of them is left. In the
        parent."""
        pixels = self._pixels[filled.slot, : filled.count].numpy()
        # A tensor of an array keeps it as long as its storage lives, whatever views share that.
        weakref.finalize(pixels, self._free, filled.slot).atexit = False
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _free(self, slot: int) -> None:
        self._states[slot] = FREE

    def received(self, sent: Pixels) -> Pixels:
        """What a worker sent, in the parent."""
        return Pixels(tuple(self.lend(p) if isinstance(p, Filled) else p for p in sent.parts))


class PixelWriter:
    """A worker's pictures of one step, at the model's size.

    slots: to write them to; without, or while none is free, to shared memory of their own.
    """

    def __init__(self, prepare: Prepare, slots: Slots | None):
        self._prepare, self._slots = prepare, slots
        self._parts: list[Any] = []  # Tensor or Filled
        self._room = torch.empty(0)
        self._count = 0

    def add(self, picture: Tensor) -> int:
        """Its place. Resized at once, while it is in the processor's cache."""
        place = self._count % PART
        if place == 0:
            self._make_room()
        self._room[place].copy_(self._prepare.resize(picture))
        self._count += 1
        return self._count - 1

    def _make_room(self) -> None:
        worker = get_worker_info()
        slot = self._slots.take(worker.id) if self._slots and worker else None
        if self._slots is None or slot is None:
            room = empty_shared(PART, *self._prepare.size, 3)
        else:
            room = self._slots.room(slot)
        # Channels last, as they are decoded: to turn them takes a tenth of the decoding.
        self._room = room.permute(0, 3, 1, 2)
        self._parts.append(self._room if slot is None else Filled(slot, PART))

    def finish(self) -> Pixels:
        if not self._parts:
            return Pixels((torch.empty(0, 3, *self._prepare.size, dtype=torch.uint8),))
        last, used = self._parts[-1], (self._count - 1) % PART + 1
        self._parts[-1] = Filled(last.slot, used) if isinstance(last, Filled) else last[:used]
        return Pixels(tuple(self._parts))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory: a GPU takes it when it comes to it, and the host does not wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def empty_shared(*shape: int) -> Tensor:
    """Of uint8; in a loader worker where the parent finds it without another copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    return new_shared(*shape)


def new_shared(*shape: int) -> Tensor:
    """Of uint8, as torch's own default_collate makes it."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
