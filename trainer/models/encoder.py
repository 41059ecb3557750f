"""Embed captions and pictures with a model's towers: what evaluations and targets call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.api import BadSample, decode_picture
from trainer.models.clip import Clip, Towers
from trainer.system.failures import hear
from trainer.system.progress_bars import progress


class ClipEncoder:
    """`Encoder` over the towers given; ranks take every other row and put the rows together.

    A tower that is elsewhere is on the device for the length of a call. autocast: what the towers
    compute in, where not as their weights are.
    """

    def __init__(
        self,
        text: Towers,
        image: Towers,
        clip: Clip,
        device: torch.device,
        batch: int = 256,
        autocast: torch.dtype | None = None,
    ):
        self._text, self._image, self._clip = text, image, clip
        self._device, self._batch = device, batch
        self._autocast = autocast

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Captions to (n, d). Sorted by length first: a batch is as long as its longest."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        with on_device(self._text.text, self._device):
            ordered = [texts[row] for row in order]
            rows = self._embed(ordered, self._embed_texts, wanted=ordered)
        return rows[torch.tensor(order, dtype=torch.int64, device=rows.device).argsort()]

    def encode_image(self, pictures: Sequence[bytes]) -> Tensor:
        """Encoded pictures to (n, d); a picture that does not decode gives a row of NaN."""
        with on_device(self._image.image, self._device):
            return self._embed(pictures, self._embed_pictures)

    def _embed(
        self, items: Sequence, embed: Callable[[list], Tensor], wanted: Sequence[str] = ()
    ) -> Tensor:
        """wanted: what every rank has to ask for, beside as many rows."""
        if not len(items):
            return torch.zeros(0, 0, device=self._device)
        hear()  # where weights are sharded, their forward would wait for a rank that failed
        rank, ranks = _rank()
        if ranks > 1:
            self._refuse_others(len(items), wanted)
        # All ranks run the towers equally often, be it on a first row once more: where weights
        # are sharded, every forward is a collective.
        per_rank = -(-len(items) // ranks)
        mine = [i if i < len(items) else 0 for i in range(rank, per_rank * ranks, ranks)]
        # Not inference mode: a loss may keep what comes of it. And nothing is compiled for shapes
        # that training has not.
        casting = torch.autocast(
            self._device.type, self._autocast, enabled=self._autocast is not None
        )
        with torch.no_grad(), casting, torch.compiler.set_stance("force_eager"):
            # Shown only where it takes long: most calls are over in a moment.
            starts = progress(
                range(0, per_rank, self._batch),
                desc="embedding",
                unit_scale=self._batch,
                delay=5,
                leave=False,
                disable=rank != 0,
            )
            parts = [
                embed([items[i] for i in mine[start : start + self._batch]]) for start in starts
            ]
        rows = torch.cat(parts)
        return rows if ranks == 1 else _interleave(rows, ranks)[: len(items)]

    def _refuse_others(self, count: int, wanted: Sequence[str]) -> None:
        """Where ranks want other rows, or another order, each would get those of the others."""
        told = blake2b(str(count).encode(), digest_size=7)
        for text in wanted:
            told.update(b"\0" + text.encode())
        number = int.from_bytes(told.digest(), "big")
        largest = torch.tensor([number, -number], device=self._device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        if largest.sum():  # the largest is not the least
            raise RuntimeError(
                "the processes want other rows embedded, or in another order; what a plugin asks "
                "for may not go by the order of a set"
            )

    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._clip.tokenize(texts).to(self._device)
        return self._text(tokens, None)[0].float()

    def _embed_pictures(self, pictures: list[bytes]) -> Tensor:
        pixels, undecodable = [], []
        for row, data in enumerate(pictures):
            try:
                picture = decode_picture(data, max(self._clip.prepare.size))
                pixels.append(self._clip.prepare.resize(picture))
            except BadSample:
                undecodable.append(row)
                pixels.append(torch.zeros(3, *self._clip.prepare.size, dtype=torch.uint8))
        embedded = self._image(None, torch.stack(pixels).to(self._device))[1].float()
        embedded[undecodable] = float("nan")
        return embedded


@contextmanager
def on_device(tower: nn.Module, device: torch.device) -> Iterator[None]:
    """The tower is there meanwhile and back afterwards; one that is there already stays untouched.

    Not to be entered in inference mode: weights that move there can never be trained again.
    """
    first = next(tower.parameters())
    home = first.device
    # A part of a sharded model is where it has to be, on the CPU under offloading.
    is_there = home.type == device.type and device.index in (None, home.index)
    if is_there or isinstance(first, DTensor):
        yield
        return
    tower.to(device)
    try:
        yield
    finally:
        tower.to(home)


def _rank() -> tuple[int, int]:
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _interleave(rows: Tensor, ranks: int) -> Tensor:
    """Every rank's rows, each holding every `ranks`-th, in the order of the whole."""
    gathered = [torch.empty_like(rows) for _ in range(ranks)]
    rows = rows.contiguous()
    hear()
    dist.all_gather(gathered, rows)
    return torch.stack(gathered, dim=1).flatten(0, 1)
