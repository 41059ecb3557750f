"""What a plugin is tested with: samples, an encoder and embeddings that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from io import BytesIO
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.api import BadSample, Embeddings, Pair, Sample, Tower, decode_picture

WIDTH = 16  # of the embeddings


def default_samples() -> list[Sample]:
    """Eight pictures of noise with captions."""
    return [
        Sample(f"{i:03d}", f"a photo of thing {i} on a table", _picture(i), f"thing {i % 3}")
        for i in range(8)
    ]


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class FakeEncoder:
    """An `Encoder` of no meaning: the same bytes always get the same random direction.

    As the real one: rows without gradient that a loss may keep, NaN for a picture that does not
    decode.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self._embed([b"text" + text.encode() for text in texts])

    def encode_image(self, pictures: Sequence[bytes]) -> Tensor:
        pictures = [pictures[i] for i in range(len(pictures))]
        embedded = self._embed(pictures)
        for row, data in zip(embedded, pictures):
            try:
                decode_picture(data)
            except BadSample:
                row.fill_(float("nan"))
        return embedded

    def _embed(self, items: list[bytes]) -> Tensor:
        rows = [np.random.default_rng(self._number(item)).standard_normal(WIDTH) for item in items]
        return torch.tensor(np.array(rows).reshape(-1, WIDTH), dtype=torch.float32)

    def _number(self, item: bytes) -> int:
        digest = blake2b(item, digest_size=8, salt=self._seed.to_bytes(8, "big")).digest()
        return int.from_bytes(digest, "big")


def part_of(pair: Pair, model: str, tower: Tower) -> str | Tensor | None:
    parts = {
        ("student", Tower.TEXT): pair.student_text,
        ("student", Tower.IMAGE): pair.student_image,
        ("teacher", Tower.TEXT): pair.teacher_text,
        ("teacher", Tower.IMAGE): pair.teacher_image,
    }
    return parts[model, tower]


def embeddings_of(pairs: list[Pair], model: str, rng: Random, scale: Tensor) -> Embeddings:
    """Random rows for the parts of the pairs that are there."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))

    def rows(tower: Tower) -> tuple[Tensor | None, Tensor | None]:
        labels = [pair.label for pair in pairs if part_of(pair, model, tower) is not None]
        if not labels:
            return None, None
        embedded = torch.randn(len(labels), WIDTH, generator=generator)
        return embedded.requires_grad_(model == "student"), torch.tensor(labels)

    (text, text_labels), (image, image_labels) = rows(Tower.TEXT), rows(Tower.IMAGE)
    return Embeddings(text, image, text_labels, image_labels, scale)


def rows_of(embeddings: Embeddings) -> list[Tensor]:
    return [rows for rows in (embeddings.text, embeddings.image) if rows is not None]
