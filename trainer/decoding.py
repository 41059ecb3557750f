"""Encoded pictures to pixels: JPEG by libjpeg-turbo itself, all else by Pillow."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

MAX_PIXELS = 100_000_000  # of one picture; a larger one is a mistake or an attack

# How many times the side that is enough a JPEG keeps that is decoded smaller. What is then resized
# differs by 0.1 to 0.4 of 255 on average from the JPEG decoded whole, by 2.5 where all of it is
# small print; with 1 in place of 2 by 1 and by 11.
SPARE = 2


class BadSample(ValueError):
    """A sample that cannot be used; it is skipped and counted under `reason`, which is logged and
    reported: never whose it is.

    shard: where it is from, if not where the clean sample at hand is.
    """

    def __init__(self, reason: str, shard: str = ""):
        super().__init__(reason)
        self.reason, self.shard = reason, shard


def decode_picture(data: bytes, min_side: int | None = None) -> Tensor:
    """JPEG, PNG, WebP or GIF to uint8 RGB (3, h, w), not turned as EXIF says. Raises BadSample.

    min_side: pixels of the shorter side that are enough; a JPEG may come at a half, a quarter or an
    eighth of its size then, its shorter side still twice that.
    """
    pixels = _decode_jpeg(data, min_side)
    if pixels is None:
        pixels = _decode_by_pillow(data)
    # A view, its channels last in memory: torchvision resizes that in half the time.
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_jpeg(data: bytes, min_side: int | None) -> np.ndarray | None:
    """(h, w, 3), whole the same as Pillow's; None where Pillow is to decide."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except Exception:  # no JPEG, or a rare one
        return None
    _check_size(height, width)
    if colours in ("CMYK", "YCCK"):  # Pillow knows of Adobe's inverted ones
        return None
    min_height, min_width = (0, 0) if min_side is None else _reduced(height, width, min_side)
    try:
        return simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
    except Exception:  # cut off, which Pillow refuses too, or damaged where Pillow goes on
        return None


def _reduced(height: int, width: int, min_side: int) -> tuple[int, int]:
    """The height and width to decode to; (0, 0) where only the whole will do."""
    for factor in (8, 4, 2):  # the eighths between are no faster
        # A side that does not divide would be rounded up: all that it shows, shifted and stretched.
        divides = height % factor == width % factor == 0
        if divides and min(height, width) >= SPARE * min_side * factor:
            return height // factor, width // factor
    return 0, 0


def _decode_by_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF")) as picture:
            _check_size(picture.height, picture.width)
            return np.array(picture.convert("RGB"))
    except BadSample:
        raise
    except Image.DecompressionBombError:
        raise BadSample("picture too large") from None
    except Exception:  # whatever hostile bytes make of a decoder
        raise BadSample("undecodable picture") from None


def _check_size(height: int, width: int) -> None:
    """Of the header alone, before there is memory for the pixels."""
    if height * width > MAX_PIXELS:
        raise BadSample("picture too large")
