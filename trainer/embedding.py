"""What a model is shown of a batch, and each objective's rows of what it makes of it.

All that goes to the device goes before the model runs: a copy later on would have the host wait for
what the device is at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from trainer.api import Embeddings
from trainer.batches import (
    ABSENT,
    LABEL,
    STUDENT_IMAGE,
    STUDENT_TEXT,
    TEACHER_IMAGE,
    TEACHER_TEXT,
    Batch,
)
from trainer.clip import Towers
from trainer.packing import Packed, pack_if_shorter, takes_packed
from trainer.pixels import Pixels

Columns = tuple[int, int]  # of a model's captions and pictures
STUDENT: Columns = (STUDENT_TEXT, STUDENT_IMAGE)
TEACHER: Columns = (TEACHER_TEXT, TEACHER_IMAGE)


@dataclass(frozen=True)
class Rows:
    """An objective's: which of a model's embeddings, and their labels; (r,) int64 both."""

    places: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Shown:
    """captions: (n, l) int64, or packed; pictures: (m, 3, H, W) uint8. By objective its rows of
    them, None where it has none."""

    device: torch.device
    captions: Tensor | Packed | None
    pictures: Tensor | None
    rows: dict[str, tuple[Rows | None, Rows | None]]


class Showing:
    """A batch to what one model is shown of it, on its device."""

    def __init__(self, towers: Towers, device: torch.device):
        """towers: before they are wrapped."""
        self._device = device
        self._pack: Callable[[Tensor], Tensor | Packed] | None = None
        pad_id = towers.text_forward.keywords["pad_id"]
        if device.type == "cuda" and takes_packed(towers.text, pad_id):
            self._pack = partial(pack_if_shorter, tower=towers.text, pad_id=pad_id)

    def __call__(self, batch: Batch, pixels: Pixels, columns: Columns) -> Shown:
        """pixels: the batch's, on the device."""
        seen = [batch.seen_by(column) for column in columns]
        captions = self._captions(batch.tokens[seen[0]]) if len(seen[0]) else None
        pictures = pixels[seen[1]] if len(seen[1]) else None
        rows = {
            name: (self._rows(own, columns[0], seen[0]), self._rows(own, columns[1], seen[1]))
            for name, own in batch.rows.items()
        }
        return Shown(self._device, captions, pictures, rows)

    def _captions(self, tokens: Tensor) -> Tensor | Packed:
        captions = tokens if self._pack is None else self._pack(tokens)
        if isinstance(captions, Packed):
            return Packed(*map(self._send, captions))
        return self._send(captions)

    def _rows(self, rows: Tensor, column: int, seen: Tensor) -> Rows | None:
        own = rows[rows[:, column] != ABSENT]
        if not len(own):
            return None
        places = torch.searchsorted(seen, own[:, column].contiguous())
        return Rows(self._send(places), self._send(own[:, LABEL]))

    def _send(self, tensor: Tensor) -> Tensor:
        """From pinned memory the host does not wait for it."""
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def embed(model: nn.Module, shown: Shown) -> dict[str, Embeddings]:
    """One forward over all that this model is to see, then each objective its own rows of it."""
    text = image = None
    scale = torch.ones((), device=shown.device)
    if shown.captions is not None or shown.pictures is not None:
        text, image, scale = model(shown.captions, shown.pictures)

    def own(embedded: Tensor | None, rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        if embedded is None or rows is None:
            return None, None
        return embedded[rows.places], rows.labels

    embeddings = {}
    for name, (text_rows, image_rows) in shown.rows.items():
        own_text, text_labels = own(text, text_rows)
        own_image, image_labels = own(image, image_rows)
        embeddings[name] = Embeddings(own_text, own_image, text_labels, image_labels, scale)
    return embeddings
