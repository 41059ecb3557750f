"""Captions to tokens and pictures to pixels, as the model's own open_clip does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

MAX_ASPECT = 16  # a longer picture loses its ends first: one row of pixels would grow to gigabytes


class Tokenizer:
    """An open_clip tokenizer that cuts the padding off; picklable, remembers captions and words."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._is_clips = (
            type(tokenizer) is SimpleTokenizer
            and tokenizer.clean_fn is get_clean_fn("lower")
            and tokenizer.reduction_fn is None
        )
        self.context_length: int = tokenizer.context_length
        self.pad_id = int(tokenizer([""])[0, -1])
        self._forget()

    def _forget(self) -> None:
        # The attack asks for the same captions at every evaluation.
        self._ids = lru_cache(maxsize=100_000)(self._ids_of)
        self._ids_of_word = lru_cache(maxsize=100_000)(self._word)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_ids", "_ids_of_word")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def _ids_of(self, text: str) -> np.ndarray:
        if self._is_clips and text.isascii() and text.isprintable() and "&" not in text:
            return self._plain(text)
        ids = self._tokenizer([text])[0].numpy().astype(np.int32)
        (used,) = np.nonzero(ids != self.pad_id)
        return ids[: used[-1] + 1 if len(used) else 1]

    def _plain(self, text: str) -> np.ndarray:
        """What CLIP's own tokenizer gives, seven times as fast: of such text there is nothing to
        mend, and most of its words were there before."""
        own = self._tokenizer
        ids = [own.sot_token_id]
        for word in own.pat.findall(text.lower()):
            ids += self._ids_of_word(word)
            if len(ids) >= self.context_length:
                break
        del ids[self.context_length - 1 :]
        return np.array([*ids, own.eot_token_id], dtype=np.int32)

    def _word(self, word: str) -> tuple[int, ...]:
        own = self._tokenizer
        pieces = own.bpe("".join(own.byte_encoder[byte] for byte in word.encode())).split(" ")
        return tuple(own.encoder[piece] for piece in pieces)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Captions to (n, l) int64, l that of the longest; filled up with `pad_id` to the full
        length they are what open_clip's tokenizer gives.
        """
        rows = [self._ids(text) for text in texts]
        length = max(map(len, rows), default=1)
        tokens = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(tokens)

    def save(self, folder: Path) -> None:
        """What `local-dir:FOLDER` needs beside its config: files, if it is Hugging Face's."""
        if isinstance(self._tokenizer, HFTokenizer):
            # Nobody chats with a CLIP, and a template's name becomes one of a file.
            self._tokenizer.tokenizer.chat_template = None
            self._tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Prepare:
    """open_clip's preprocessing in two halves: resize and crop in a worker, scale on the device."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int

    @staticmethod
    def of(config: dict) -> Prepare:
        """From open_clip's preprocess_cfg."""
        size = config["size"]
        return Prepare(
            size=(size, size) if isinstance(size, int) else tuple(size),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            resize_mode=config["resize_mode"],
            fill_color=config["fill_color"],
        )

    def resize(self, picture: Tensor) -> Tensor:
        """uint8 (3, h, w) of any size to uint8 (3, H, W) of the model's."""
        if tuple(picture.shape[-2:]) == self.size:
            return picture
        height, width = self.size
        if self.resize_mode == "squash":
            return self._resize(picture, [height, width])
        if self.resize_mode == "longest":
            return _pad_to(
                self._resize(picture, self._scaled(picture, min)), *self.size, self.fill_color
            )
        picture = _without_ends(picture)
        # torchvision's own way for a square rounds the longer side down, open_clip's does not.
        scaled = [height] if height == width else self._scaled(picture, max)
        return tvf.center_crop(self._resize(picture, scaled), [height, width])

    def _scaled(self, picture: Tensor, pick) -> list[int]:
        scale = pick(
            wanted / found for wanted, found in zip(self.size, picture.shape[-2:], strict=True)
        )
        return [max(1, round(side * scale)) for side in picture.shape[-2:]]

    def _resize(self, picture: Tensor, size: list[int]) -> Tensor:
        mode = InterpolationMode.BICUBIC
        if self.interpolation == "bilinear":
            mode = InterpolationMode.BILINEAR
        return tvf.resize(picture, size, interpolation=mode, antialias=True)

    def scale(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) to the float input of the tower, on whatever device they are."""
        mean, std = (of_channels(own, pixels.device) * 255 for own in (self.mean, self.std))
        # Where the floats lie: a batch of them is large.
        return pixels.to(torch.float32, copy=True).sub_(mean).div_(std)


def of_channels(values: Sequence[float], device: torch.device) -> Tensor:
    """(3, 1, 1) float32, made there: the host would wait for a copy."""
    return torch.stack(
        [torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values]
    )


def _without_ends(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    if max(height, width) <= MAX_ASPECT * min(height, width):
        return picture
    return tvf.center_crop(
        picture, [min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)]
    )


def _pad_to(picture: Tensor, height: int, width: int, fill: int) -> Tensor:
    top, left = (height - picture.shape[-2]) // 2, (width - picture.shape[-1]) // 2
    bottom, right = height - picture.shape[-2] - top, width - picture.shape[-1] - left
    return tvf.pad(picture, [left, top, right, bottom], fill=fill)
