"""Captions one after another in rows of one length: a GPU computes next to no padding.

A caption attends within itself alone, so it embeds as if it were by itself. Dense rows and a mask
of each serve every kernel of attention, and are 128 long because that is a kernel's own tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from trainer.models.blocks import attends_to_itself
from trainer.models.text_towers import lengths_of, place_of_end, read_out, takes_short_text

ROW = 128  # tokens


class Packed(NamedTuple):
    """n captions in r rows.

    tokens, places: (r, ROW) int64, and where in its caption each stands. captions: (r, ROW) int64,
    whose it is, of padding nobody's: -1. ends: (n,) int64, of each caption the token that is read
    out, in the rows put together.
    """

    tokens: Tensor
    places: Tensor
    captions: Tensor
    ends: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(r, 1, ROW, ROW) additive: to what stands before it in the same caption, and to itself.

        Padding attends to the padding before it, for rows of no weight at all are not numbers.
        """
        is_own = self.captions[:, :, None] == self.captions[:, None, :]
        hidden = ~is_own.tril()[:, None]
        return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))


def takes_packed(tower: nn.Module, pad_id: int) -> bool:
    """Whether its captions may be packed, once `blocks.lean` has been there."""
    return (
        takes_short_text(tower, pad_id)
        and isinstance(tower, TextTransformer)
        and tower.context_length <= ROW
        and all(attends_to_itself(block) for block in tower.transformer.resblocks)
    )


def pack(tokens: Tensor, tower: Any, pad_id: int) -> Packed:
    """tokens: (n, l) int64 on the CPU, filled up with `pad_id`."""
    lengths = lengths_of(tokens, pad_id).numpy()
    rows, starts, num_rows = rows_of(lengths)
    first = rows * ROW + starts  # (n,) in the rows put together
    captions = np.repeat(np.arange(len(lengths)), lengths)  # of each token
    places = np.arange(len(captions)) - np.repeat(lengths.cumsum() - lengths, lengths)
    where = first[captions] + places

    def in_rows(values: np.ndarray, filler: int) -> Tensor:
        room = np.full(num_rows * ROW, filler)
        room[where] = values
        return torch.from_numpy(room.reshape(num_rows, ROW))

    return Packed(
        in_rows(tokens.numpy()[captions, places], pad_id),
        in_rows(places, 0),
        in_rows(captions, -1),
        torch.from_numpy(first) + place_of_end(tokens, tower),
    )


def pack_if_shorter(tokens: Tensor, tower: Any, pad_id: int) -> Tensor | Packed:
    """The captions as they are, where these are all so long that rows would hold more padding."""
    packed = pack(tokens, tower, pad_id)
    return packed if packed.tokens.numel() < tokens.numel() else tokens


def rows_of(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each caption its row and where it begins there; and the number of rows.

    lengths: (n,), of ROW at most. A row takes the longest that still fits until none does: of
    captions as they are in the wild a row in a hundred is padding.
    """
    left = np.bincount(lengths, minlength=ROW + 1).tolist()
    longest = int(lengths.max(initial=0))
    taken: list[tuple[int, int, int]] = []  # length, row, start
    row = -1
    while len(taken) < len(lengths):
        row, start = row + 1, 0
        length = longest
        while length := _longest(left, min(length, ROW - start)):
            taken.append((length, row, start))
            left[length] -= 1
            start += length
        longest = _longest(left, longest)
    found = np.array(sorted(taken), dtype=np.int64).reshape(-1, 3)
    order = lengths.argsort(kind="stable")
    rows, starts = np.empty_like(lengths), np.empty_like(lengths)
    rows[order], starts[order] = found[:, 1], found[:, 2]
    return rows, starts, row + 1


def _longest(left: list[int], length: int) -> int:
    """The largest length of which there are any, of this at most; 0 where there is none."""
    while length and not left[length]:
        length -= 1
    return length


def packed_text(tower: TextTransformer, packed: Packed) -> Tensor:
    """`text_towers.cut_text` of captions in rows. Returns (n, d)."""
    x = tower.token_embedding(packed.tokens) + tower.positional_embedding[packed.places]
    return read_out(tower, x, packed.mask(x.dtype), packed.ends)
