from __future__ import annotations

import io
import struct
import tracemalloc
from functools import lru_cache
from random import Random

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from tests.benchmarks.pictures import difference, draw_picture, jpeg
from trainer.decoding import BadSample, decode_picture
from trainer.models.preprocess import Prepare

SMALL = draw_picture(0, 97, 61)
KINDS = {
    "plain": jpeg(SMALL),
    "full colour": jpeg(SMALL, subsampling="4:4:4"),
    "half colour": jpeg(SMALL, subsampling="4:2:2"),
    "progressive": jpeg(SMALL, progressive=True),
    "restarts": jpeg(SMALL, restart_marker_blocks=2),
    "grey": jpeg(SMALL.convert("L")),
    "RGB": jpeg(SMALL, keep_rgb=True),
    "CMYK": jpeg(SMALL.convert("CMYK")),
}


def by_pillow(data: bytes) -> torch.Tensor:
    return torch.tensor(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@lru_cache
def drawn(width: int, height: int) -> bytes:
    return jpeg(draw_picture(0, width, height))


def with_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header says so."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_gives_pillows_pixels(kind):
    assert torch.equal(decode_picture(KINDS[kind]), by_pillow(KINDS[kind]))


@pytest.mark.parametrize(
    "data",
    [
        encoded(SMALL, "PNG"),
        encoded(SMALL.convert("P"), "PNG"),
        encoded(SMALL.convert("1"), "PNG"),
        encoded(SMALL.convert("LA"), "PNG"),
        encoded(Image.fromarray(np.arange(0, 60_000, 4, np.uint16).reshape(100, 150)), "PNG"),
        encoded(SMALL.convert("P"), "GIF", transparency=3),
        encoded(SMALL, "WEBP"),
        encoded(SMALL.convert("RGBA"), "WEBP", lossless=True),
    ],
    ids=["RGB", "palette", "bits", "grey with alpha", "16 bits", "GIF", "WebP", "WebP with alpha"],
)
def test_another_format_gives_pillows_pixels_whole(data):
    assert torch.equal(decode_picture(data), by_pillow(data))
    assert torch.equal(decode_picture(data, min_side=4), by_pillow(data))


def test_a_picture_is_not_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert decode_picture(jpeg(SMALL, exif=exif)).shape == (3, 61, 97)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("min_side", [None, 8])
def test_a_jpeg_cut_anywhere_is_a_bad_sample(kind, min_side):
    data = KINDS[kind]
    for length in [*range(0, len(data), 37), *range(len(data) - 8, len(data) - 2)]:
        with pytest.raises(BadSample, match="^undecodable picture$"):
            decode_picture(data[:length], min_side)


def test_a_damaged_jpeg_is_used_or_refused_as_by_pillow():
    random = Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(KINDS[random.choice([*KINDS])])
        data[random.randrange(2, len(data))] = random.randrange(256)
        try:
            wanted = by_pillow(bytes(data))
        except Exception:
            refused += 1
            with pytest.raises(BadSample):
                decode_picture(bytes(data))
        else:
            assert torch.equal(decode_picture(bytes(data)), wanted)
    assert 10 < refused < 200


@pytest.mark.parametrize("kind", ["plain", "progressive"])
@pytest.mark.parametrize("size", [(65_500, 65_500), (10_001, 10_000), (65_500, 1_527)])
@pytest.mark.parametrize("min_side", [None, 224])
def test_a_jpeg_of_too_many_pixels_is_refused_without_memory(kind, size, min_side):
    data = with_size(KINDS[kind], *size)
    tracemalloc.start()
    try:
        with pytest.raises(BadSample, match="^picture too large$"):
            decode_picture(data, min_side)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("size", "min_side", "wanted"),
    [
        ((320, 256), None, (320, 256)),
        ((320, 256), 16, (40, 32)),  # an eighth, and twice 16 still
        ((320, 256), 17, (80, 64)),
        ((320, 256), 32, (80, 64)),
        ((320, 256), 64, (160, 128)),
        ((320, 256), 65, (320, 256)),
        ((256, 320), 64, (128, 160)),
        ((321, 256), 16, (321, 256)),  # does not divide
        ((322, 256), 16, (161, 128)),
    ],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_is_decoded_at_the_least_scale_that_spares_twice_the_side(
    size, min_side, wanted, options
):
    data = jpeg(Image.new("RGB", size[::-1], (9, 200, 30)), **options)
    picture = decode_picture(data, min_side)
    assert picture.shape == (3, *wanted) and (picture[1] == decode_picture(data)[1, 0, 0]).all()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(
    ("size", "bound"),
    [
        ((340, 256), 0.2),
        ((256, 341), 0.2),
        ((120, 90), 0.2),
        ((901, 700), 0.2),
        ((900, 1200), 0.5),
        ((1796, 1792), 0.5),
    ],
)
def test_pixels_are_those_of_open_clips_own_preprocessing(mode, size, bound):
    """Of 255: roundings, and from 900 on a half or a quarter of the scale."""
    config = PreprocessCfg(resize_mode=mode)
    transform = image_transform_v2(config, is_train=False)
    assert difference([drawn(*size)], Prepare.of(vars(config)), transform) < bound
