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

from trainer.api import Embeddings, Tower
from trainer.data.batches import (
    ABSENT,
    KNOWN_IMAGE,
    KNOWN_TEXT,
    LABEL,
    STUDENT_IMAGE,
    STUDENT_TEXT,
    TEACHER_IMAGE,
    TEACHER_TEXT,
    Batch,
)
from trainer.data.pixels import Pixels, sent
from trainer.models.clip import Towers
from trainer.models.packing import Packed, pack_if_shorter, takes_packed

Columns = tuple[tuple[int, int | None], ...]  # of a model's captions and pictures: seen, known
STUDENT: Columns = ((STUDENT_TEXT, None), (STUDENT_IMAGE, None))
TEACHER: Columns = ((TEACHER_TEXT, KNOWN_TEXT), (TEACHER_IMAGE, KNOWN_IMAGE))


@dataclass(frozen=True)
class Rows:
    """An objective's: which of a model's embeddings, and their labels; (r,) int64 both."""

    places: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Shown:
    """captions: (n, l) int64, or packed; pictures: (m, 3, H, W) uint8. known: embeddings of
    further captions and pictures, (k, d) each. By objective its rows of them, None where it has
    none. blank: towers that are shown one of nobody's rows, for there is none."""

    device: torch.device
    captions: Tensor | Packed | None
    pictures: Tensor | None
    known: tuple[Tensor | None, ...]
    rows: dict[str, tuple[Rows | None, Rows | None]]
    blank: frozenset[Tower] = frozenset()


@dataclass(frozen=True)
class Chosen:
    """What one tower of a model is to see of a batch, and which known embeddings go with it; sorted
    (n,) int64 both, and the columns of rows that they are from."""

    column: int
    known_column: int | None
    seen: Tensor
    known: Tensor

    @staticmethod
    def of(batch: Batch, column: int, known_column: int | None) -> Chosen:
        none = torch.empty(0, dtype=torch.int64)
        known = none if known_column is None else batch.seen_by(known_column)
        return Chosen(column, known_column, batch.seen_by(column), known)

    def places(self, rows: Tensor) -> Tensor:
        """Of an objective's rows: which of what comes of the tower, the known ones after it."""
        seen = rows[:, self.column].contiguous()
        places = torch.where(seen == ABSENT, ABSENT, torch.searchsorted(self.seen, seen))
        if self.known_column is None:
            return places
        known = rows[:, self.known_column].contiguous()
        after = len(self.seen) + torch.searchsorted(self.known, known)
        return torch.where(known == ABSENT, places, after)


class Showing:
    """A batch to what one model is shown of it, on its device."""

    def __init__(self, towers: Towers, device: torch.device, is_teacher_whole: bool = True):
        """towers: before they are wrapped. is_teacher_whole: on each rank, which needs no other's
        part of it.
        """
        self._towers, self._device = towers, device
        self._in_parts = (STUDENT,) if is_teacher_whole else (STUDENT, TEACHER)
        self._pack: Callable[[Tensor], Tensor | Packed] | None = None
        pad_id = towers.text_forward.keywords["pad_id"]
        if device.type == "cuda" and takes_packed(towers.text, pad_id):
            self._pack = partial(pack_if_shorter, tower=towers.text, pad_id=pad_id)

    def __call__(self, batch: Batch, pixels: Pixels, columns: Columns) -> Shown:
        """pixels: the batch's, on the device.

        A student runs all its towers, on a blank where there are no rows, and so does a teacher in
        parts: DDP and sharded weights, be they frozen, would wait for one that a rank, or a part of
        a step, left out.
        """
        text, image = (Chosen.of(batch, *own) for own in columns)
        captions = self._captions(batch.tokens[text.seen]) if len(text.seen) else None
        pictures = pixels[image.seen] if len(image.seen) else None
        blank = set()
        runs_all = columns in self._in_parts
        if runs_all and captions is None and self._towers.text is not None:
            blank.add(Tower.TEXT)
            captions = self._send(self._towers.blank_caption())
        if runs_all and pictures is None and self._towers.image is not None:
            blank.add(Tower.IMAGE)
            pictures = self._towers.blank_picture(self._device)
        known = tuple(
            self._send(kept[own.known]) if len(own.known) else None
            for own, kept in zip((text, image), batch.known, strict=True)
        )
        rows = {
            name: (self._rows(own, text), self._rows(own, image))
            for name, own in batch.rows.items()
        }
        return Shown(self._device, captions, pictures, known, rows, frozenset(blank))

    def _captions(self, tokens: Tensor) -> Tensor | Packed:
        captions = tokens if self._pack is None else self._pack(tokens)
        if isinstance(captions, Packed):
            return Packed(*map(self._send, captions))
        return self._send(captions)

    def _rows(self, rows: Tensor, chosen: Chosen) -> Rows | None:
        places = chosen.places(rows)
        is_there = places != ABSENT
        if not is_there.any():
            return None
        return Rows(self._send(places[is_there]), self._send(rows[is_there, LABEL]))

    def _send(self, tensor: Tensor) -> Tensor:
        return sent(tensor, self._device)


def embed(
    model: nn.Module, shown: Shown, logit_scale: Tensor | None = None
) -> dict[str, Embeddings]:
    """One forward over all that this model is to see, then each objective its own rows of it.

    logit_scale: of a model that may be shown nothing, and then would not tell.
    """
    text = image = None
    scale = torch.ones((), device=shown.device) if logit_scale is None else logit_scale
    if shown.captions is not None or shown.pictures is not None:
        text, image, own_scale = model(shown.captions, shown.pictures)
        text, image = without_blanks(text, image, shown.blank)
        scale = own_scale.float() if logit_scale is None else logit_scale
    # Of whatever precision the strategy computes in: losses are of float32.
    text, image = (None if one is None else one.float() for one in (text, image))
    text, image = map(with_known, (text, image), shown.known)

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


def without_blanks(
    text: Tensor | None, image: Tensor | None, blank: frozenset[Tower]
) -> tuple[Tensor | None, Tensor | None]:
    """A blank is none of a tower's rows, but as no rows it stands with the other's: its gradient is
    zeros. It is not left as an empty embedding, of which a loss may take the mean.
    """
    if Tower.TEXT in blank:
        text, image = None, _with_no_rows(image, text)
    if Tower.IMAGE in blank:
        text, image = _with_no_rows(text, image), None
    return text, image


def _with_no_rows(kept: Tensor | None, of: Tensor | None) -> Tensor | None:
    return kept if kept is None or of is None else torch.cat([kept, of[:0]])


def with_known(embedded: Tensor | None, known: Tensor | None) -> Tensor | None:
    if known is None:
        return embedded
    known = known.float()
    return known if embedded is None else torch.cat([embedded, known])
