"""Captions a second from local shards with pictures in them, against plain webdataset.

One process, no loader; the two take turns in one run. Both read what the page cache holds: what is
compared is the work a caption costs, not the disk.
"""

from __future__ import annotations

import tarfile
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import webdataset as wds

from trainer.data.indexing import index_shards
from trainer.data.readers import Reading
from trainer.data.streams import Dealt, Lane

SHARDS, SAMPLES, PICTURE_BYTES = 4, 2_000, 30_000
ROUNDS, LANES = 5, 16
OURS, PLAIN = 64_000, 2_000  # captions a round


def write_shard(folder: Path, shard: int, num_samples: int, picture_bytes: int) -> None:
    """In img2dataset's layout."""
    random = Random(shard)
    with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
        for i in range(num_samples):
            key = f"{shard:05d}{i:04d}"
            caption = " ".join(random.choices(WORDS, k=random.randint(6, 14)))
            parts = {
                "jpg": random.randbytes(picture_bytes),
                "json": f'{{"key": "{key}", "caption": "{caption}"}}'.encode(),
                "txt": caption.encode(),
            }
            for name, data in parts.items():
                if data:
                    entry = tarfile.TarInfo(f"{key}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, BytesIO(data))


WORDS = ["a", "dog", "of", "green", "grass", "chairs", "while", "rain", "falls", "at", "night"]


def our_captions(pattern: str, reading: Reading):
    dealt = Dealt.of([pattern], LANES, 0)
    lanes = [Lane(dealt, number, 0, 100, reading) for number in range(LANES)]
    while True:
        for lane in lanes:
            yield next(lane).text


def plain_captions(pattern: str):
    while True:
        yield from (text for (text,) in wds.WebDataset(pattern, shardshuffle=False).to_tuple("txt"))


def rate(captions, count: int) -> float:
    started_at = perf_counter()
    assert sum(1 for _ in islice(captions, count)) == count
    return count / (perf_counter() - started_at)


def measure() -> dict[str, float]:
    """Captions a second of each, and the median of the rounds' ratios."""
    with TemporaryDirectory() as folder:
        for shard in range(SHARDS):
            write_shard(Path(folder), shard, SAMPLES, PICTURE_BYTES)
        pattern = f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar"
        plain, without = plain_captions(pattern), our_captions(pattern, Reading(False))
        rate(without, SHARDS * SAMPLES)  # the headers are walked once
        walked = [(rate(without, OURS), rate(plain, PLAIN)) for _ in range(ROUNDS)]
        index_shards([pattern], None, 1)
        indexed = our_captions(pattern, Reading(False))
        rounds = [(rate(indexed, OURS), rate(plain, PLAIN)) for _ in range(ROUNDS)]
    return {
        "captions_per_second": median(ours for ours, _ in rounds),
        "plain_captions_per_second": median(plain for _, plain in rounds),
        "ratio": median(ours / plain for ours, plain in rounds),
        "ratio_after_a_walk_without_index": median(ours / plain for ours, plain in walked),
    }
