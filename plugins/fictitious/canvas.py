"""What every picture is drawn on, and the grain that it has as a photograph."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 64  # of a picture
SCALE = 2  # drawn larger, then reduced: smooth edges

Point = tuple[float, float]


def reduced(image: Image.Image) -> np.ndarray:
    """What was drawn, at the final size: (SIDE, SIDE, 3) float32, to 255."""
    return np.asarray(image.reduce(SCALE), dtype=np.float32)


def grainy(pixels: np.ndarray, r: np.random.Generator) -> Image.Image:
    """As a sensor would have it: noise, more in one picture than in another."""
    pixels += r.standard_normal(pixels.shape, dtype=np.float32) * r.uniform(1, 5)
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))
