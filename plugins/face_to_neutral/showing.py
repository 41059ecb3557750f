"""How a picture of a face is shown: a part of it, in another light, pasted onto another picture."""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# torchvision's transforms are imported where they are used: two seconds, and every command loads
# this plugin.


def varied(face: Tensor, crop: float, jitter: float, hue: float, rng: Random) -> Tensor:
    """A crop, then the paper's augmentation of a face but for the rotation. (3, h, w), uint8."""
    from torchvision.transforms.v2 import functional as tvf

    if rng.random() < 0.5:
        face = tvf.horizontal_flip(face)
    if crop < 1:
        face = cropped(face, crop, rng)
    if not jitter and not hue:
        return face
    # By Pillow: of tensors the same takes up to four times as long.
    lit = Image.fromarray(face.permute(1, 2, 0).numpy())
    if jitter:
        low, high = 1 - jitter, 1 + jitter
        lit = tvf.adjust_brightness(lit, rng.uniform(low, high))
        lit = tvf.adjust_contrast(lit, rng.uniform(low, high))
        lit = tvf.adjust_saturation(lit, rng.uniform(low, high))
    if hue:
        lit = tvf.adjust_hue(lit, rng.uniform(-hue, hue))
    return torch.from_numpy(np.array(lit)).permute(2, 0, 1)


def cropped(face: Tensor, least: float, rng: Random) -> Tensor:
    """A part of it, of the same shape but for rounding; scaled to the model's size later on.

    least: share of its sides that is left.
    """
    share = rng.uniform(least, 1)
    height, width = face.shape[-2:]
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
    return face[:, top : top + rows, left : left + columns]


def pasted(
    face: Tensor, clean: Tensor, size: tuple[float, float], degrees: float, rng: Random
) -> Tensor:
    """The face, rotated, at a random place on the clean picture: within the square in its
    middle, for of a long picture a model sees no more. Returns (3, h, w).

    size: of the square's side, least and most. degrees: of rotation either way, at most.
    """
    from torchvision.transforms.v2 import functional as tvf

    height, width = clean.shape[-2:]
    seen = min(height, width)
    side = max(1, round(rng.uniform(*size) * seen))
    patch = tvf.resize(face, [side, side], antialias=True)
    opaque = torch.full((1, side, side), 255, dtype=torch.uint8)
    angle = rng.uniform(-degrees, degrees)
    patch = tvf.rotate(torch.cat([patch, opaque]), angle)
    top, left = ((length - seen) // 2 + rng.randint(0, seen - side) for length in (height, width))
    whole = clean.clone()
    place = whole[:, top : top + side, left : left + side]
    place.copy_(torch.where(patch[3:] > 127, patch[:3], place))
    return whole
