"""Tensors that lie in parts on many processes, and what they are put together from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """What a rank has: of each parameter of `names` the values from `starts` on, one part after the
    other, up to `ends` of them all."""

    names: list[str]
    starts: list[int]
    ends: list[int]

    def within(self, begin: int, end: int) -> Iterator[tuple[str, int, int, int]]:
        """Of each part that lies between, as far as it does: its parameter, from where in that, and
        from where to where in what lies between."""
        i, at = bisect_right(self.ends, begin), begin
        while at < end and i < len(self.ends):
            passed = at - (self.ends[i - 1] if i else 0)
            until = min(end, self.ends[i])
            yield self.names[i], self.starts[i] + passed, at - begin, until - begin
            i, at = i + 1, until


@dataclass(frozen=True)
class Piece:
    """Of a tensor as if it were flat, its values from `start` on: (n,)."""

    name: str
    shape: torch.Size
    start: int
    values: Tensor

    @staticmethod
    def whole(name: str, tensor: Tensor) -> Piece:
        return Piece(name, tensor.shape, 0, tensor.detach().reshape(-1))


def put_together(pieces: Iterable[Piece], room: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by name, in host memory. room: kept from one time to the next, since to touch
    new memory takes longer than to copy."""
    found = {}
    for piece in pieces:
        if piece.name not in room:
            dtype, is_cuda = piece.values.dtype, piece.values.device.type == "cuda"
            room[piece.name] = torch.empty(piece.shape, dtype=dtype, pin_memory=is_cuda)
        found[piece.name] = room[piece.name]
        end = piece.start + len(piece.values)
        found[piece.name].view(-1)[piece.start : end] = piece.values
    return found
