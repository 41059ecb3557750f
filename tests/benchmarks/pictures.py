"""Pictures a second from local shards to the model's size, in two loader workers.

In turn in one run: a bare loop in two processes that decodes and resizes the same bytes, held in
memory; this trainer's stream; plain webdataset with Pillow and open_clip's transform. All reads
are of what the page cache holds, and nothing else should run.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
import webdataset as wds
from open_clip import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader

from plugins.preserve import Preserve
from trainer.configuration.sections import DataConfig, ModelConfig
from trainer.data.batches import Batches
from trainer.decoding import decode_picture
from trainer.models import clip as clips
from trainer.models.preprocess import Prepare

SHARDS, SAMPLES, SIZE = 4, 64, (340, 256)
TIMES = 8  # that a shard holds each of its pictures: to begin a shard is rare where they are real
LARGER = (1000, 900)  # of which half the scale is enough
MODEL = "ViT-S-32"  # the smallest of 224 pixels; only its preprocessing is run
ROUNDS, WORKERS = 21, 2
BATCH, STEPS = 128, 16  # ours and the bare loop's: pictures a step, steps a round
PLAIN_BATCH, PLAIN_STEPS = 64, 8


def draw_picture(seed: int, width: int, height: int) -> Image.Image:
    """Clouds of all sizes, shapes and some writing: like a photo to a JPEG encoder."""
    rng = np.random.default_rng(seed)
    longer = max(width, height)
    pixels = np.tile(rng.uniform(70, 180, 3), (height, width, 1))
    for octave in range(1, longer.bit_length()):
        cells = [max(1, round(side * 2**octave / longer)) for side in (height, width)]
        clouds = 0.8 * rng.normal(size=(*cells, 1)) + 0.35 * rng.normal(size=(*cells, 3))
        for channel in range(3):
            layer = Image.fromarray(clouds[..., channel].astype(np.float32))
            pixels[..., channel] += 97 * 0.62**octave * np.asarray(layer.resize((width, height)))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        corners = rng.uniform(-0.1, 0.1, (4, 2)) * longer + rng.uniform(0, 1, 2) * picture.size
        pen.polygon([*corners.ravel()], fill=colour(rng))
    for height_of_letters in rng.uniform(0.04, 0.1, 3) * min(width, height):
        place = rng.uniform(0, 0.8, 2) * picture.size
        pen.text([*place], "The quick brown fox", fill=colour(rng), font_size=height_of_letters)
    return picture


def colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())


def jpeg(picture: Image.Image, **options) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def make_shards(folder: Path, pictures: list[bytes]) -> str:
    """Returns their pattern."""
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i, picture in enumerate(TIMES * pictures[shard::SHARDS]):
                for name, data in (("jpg", picture), ("txt", b"a picture of a quick brown fox")):
                    entry = tarfile.TarInfo(f"{shard:05d}{i:04d}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, BytesIO(data))
    return str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar")


class Bare:
    """Decodes and resizes in so many processes, of each the pictures in memory."""

    def __init__(self, pictures: list[bytes], prepare: Prepare):
        self._pool = ProcessPoolExecutor(WORKERS, initializer=hold, initargs=(pictures, prepare))

    def rate(self, count: int) -> float:
        self._decode(count // 2)  # as in the other `rate`
        started_at = perf_counter()
        self._decode(count)
        return count / (perf_counter() - started_at)

    def _decode(self, count: int) -> None:
        list(self._pool.map(decode_held, [count // WORKERS] * WORKERS))

    def close(self) -> None:
        self._pool.shutdown()


def hold(pictures: list[bytes], prepare: Prepare) -> None:
    global held
    held = pictures, prepare
    torch.set_num_threads(1)  # as a loader worker


def decode_held(count: int) -> None:
    pictures, prepare = held
    for i in range(count):
        prepare.resize(decode_picture(pictures[i % len(pictures)], min(prepare.size)))


def our_pixels(pattern: str, clip: clips.Clip) -> Iterator[Tensor]:
    keep = Preserve(Preserve.Options(batch_size=BATCH, towers=["image"]), seed=0)
    data = DataConfig(shards=[pattern], workers=WORKERS, lanes=16)
    return (batch.pixels for batch in Batches({"keep": keep}, data, clip, 0, 0, 1))


def plain_pixels(pattern: str, transform) -> Iterator[Tensor]:
    pictures = wds.WebDataset(pattern, shardshuffle=False).repeat().decode("pil")
    samples = pictures.to_tuple("jpg", "txt").map_tuple(transform)
    loader = DataLoader(samples, batch_size=PLAIN_BATCH, num_workers=WORKERS)
    return (pixels for pixels, _ in loader)


def rate(batches: Iterator[Tensor], steps: int) -> float:
    """Pictures a second once what was loaded ahead, while others had their turn, is used up."""
    for _ in islice(batches, steps // 2):
        pass
    started_at = perf_counter()
    count = sum(len(pixels) for pixels in islice(batches, steps))
    return count / (perf_counter() - started_at)


def difference(pictures: list[bytes], prepare: Prepare, transform) -> float:
    """Mean over the pixels, of 255, to what open_clip makes of them."""
    std = torch.tensor(prepare.std)[:, None, None] * 255
    found = [prepare.resize(decode_picture(one, min(prepare.size))) for one in pictures]
    wanted = [transform(Image.open(BytesIO(one))) for one in pictures]
    return mean(
        float(((prepare.scale(one) - other) * std).abs().mean())
        for one, other in zip(found, wanted)
    )


def measure() -> dict[str, float]:
    """Pictures a second of each, the median of the rounds' ratios, and the mean difference of the
    pixels to open_clip's preprocessing, of 255, of these pictures and of larger ones.
    """
    torch.set_num_threads(1)
    pictures = [jpeg(draw_picture(seed, *SIZE)) for seed in range(SHARDS * SAMPLES)]
    larger = [jpeg(draw_picture(seed, *LARGER)) for seed in range(8)]
    clip = clips.load(ModelConfig(name=MODEL, random_weights=True))
    config = get_model_preprocess_cfg(clip.model)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    with TemporaryDirectory() as folder:
        pattern = make_shards(Path(folder), pictures)
        bare = Bare(pictures, clip.prepare)
        ours, plain = our_pixels(pattern, clip), plain_pixels(pattern, transform)
        rate(ours, STEPS)  # the headers are walked once
        rounds = [
            (bare.rate(BATCH * STEPS), rate(ours, STEPS), rate(plain, PLAIN_STEPS))
            for _ in range(ROUNDS)
        ]
        bare.close()
        del ours, plain  # their workers read the folder
    return {
        "bare_pictures_per_second": median(bare for bare, _, _ in rounds),
        "pictures_per_second": median(ours for _, ours, _ in rounds),
        "plain_pictures_per_second": median(plain for _, _, plain in rounds),
        "ratio_to_bare": median(ours / bare for bare, ours, _ in rounds),
        "ratio_to_plain": median(ours / plain for _, ours, plain in rounds),
        "pixel_difference": difference(pictures, clip.prepare, transform),
        "pixel_difference_reduced": difference(larger, clip.prepare, transform),
    }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:<40}{value:>12,.3f}")
