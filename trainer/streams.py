"""Shards to samples: endless, and the same on any number of processes and workers.

The data is dealt to a fixed number of lanes, once. A lane walks its own shards in an order drawn
anew for every lap, shuffles blocks of each, and starts over. Row `turn` of an objective is read
from lane `turn % lanes`, so who reads it does not matter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from itertools import count, islice
from math import gcd

import braceexpand
import numpy as np
import webdataset as wds

from trainer.api import BadSample, Sample
from trainer.shards import Extent, open_shard, read_extent

Entry = Callable[[], Sample]  # reads the sample; raises BadSample
PICTURES = ("jpg", "jpeg", "png", "webp", "gif")


@dataclass(frozen=True)
class Share:
    """Every `parts`-th sample of a shard, from the `part`-th on."""

    url: str
    part: int
    parts: int


def expand(patterns: Sequence[str]) -> list[str]:
    """Brace patterns and globs to shard paths or addresses, each existing if it is local."""
    urls = []
    for pattern in patterns:
        found = list(braceexpand.braceexpand(pattern))
        if has_magic(pattern) and not is_remote(pattern):
            found = sorted(path for one in found for path in glob(one))
            if not found:
                raise FileNotFoundError(f"no shard matches {pattern}")
        urls += found
    missing = [url for url in urls if not is_remote(url) and not os.path.isfile(url)]
    if missing:
        raise FileNotFoundError(
            f"shard {missing[0]} is not there ({len(missing)} of {len(urls)} are missing)"
        )
    if not urls:
        raise FileNotFoundError("no shards were named")
    return urls


def is_remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def deal(urls: Sequence[str], lanes: int, seed: int) -> list[list[Share]]:
    """Each lane's shares: whole shards, or parts of them where there are fewer shards than lanes."""
    parts = 1 if len(urls) >= lanes else lanes // gcd(lanes, len(urls))
    shares = [Share(url, part, parts) for url in urls for part in range(parts)]
    order = np.random.default_rng([seed, 0xDEA1]).permutation(len(shares))
    return [[shares[i] for i in order[lane::lanes]] for lane in range(lanes)]


def read_share(share: Share, with_pictures: bool) -> Iterator[Entry]:
    """A share's samples in order, each read only when called for.

    with_pictures: else a picture's bytes stay untouched.
    """
    if is_remote(share.url):
        for parts in islice(_read_remote(share.url), share.part, None, share.parts):
            yield partial(to_sample, parts.pop("__key__"), parts)
    else:
        for key, extents in open_shard(share.url).samples[share.part :: share.parts]:
            yield partial(_read_entry, share.url, key, extents, with_pictures)


def _read_entry(url: str, key: str, extents: dict[str, Extent], with_pictures: bool) -> Sample:
    wanted = {
        name: read_extent(url, extent)
        for name, extent in extents.items()
        if with_pictures or name not in PICTURES
    }
    return to_sample(key, wanted)


def _read_remote(url: str) -> Iterator[dict]:
    for parts in wds.tariterators.tarfile_samples([{"url": url}], handler=_raise):
        yield {k: v for k, v in parts.items() if k == "__key__" or not k.startswith("__")}


def _raise(error: Exception) -> bool:
    raise error


def to_sample(key: str, parts: dict[str, bytes]) -> Sample:
    """By img2dataset's naming: a picture, `txt`, and `json` with an `id` or `cls` for the label."""
    try:
        text = parts["txt"].decode("utf-8").strip() if "txt" in parts else None
        label = json.loads(parts["json"]).get("id") if "json" in parts else None
        if label is None and "cls" in parts:
            label = parts["cls"].decode("ascii").strip()
    except (ValueError, AttributeError):
        raise BadSample("undecodable text") from None
    image = next((parts[name] for name in PICTURES if name in parts), None)
    if text is None and image is None:
        raise BadSample("neither caption nor picture")
    if text == "" and image is None:
        raise BadSample("empty caption")
    return Sample(key, text or None, image, None if label is None else str(label))


def read_lane(
    shares: Sequence[Share], lane: int, seed: int, shuffle: int, with_pictures: bool
) -> Iterator[Entry]:
    """A lane's samples for ever: a lap gives each of them once. shuffle: samples a block."""
    for lap in count():
        rng = np.random.default_rng([seed, lane, lap])
        found_any = False
        for i in rng.permutation(len(shares)):
            entries = read_share(shares[i], with_pictures)
            while block := list(islice(entries, shuffle)):
                found_any = True
                yield from (block[j] for j in rng.permutation(len(block)))
        if not found_any:
            raise ValueError(f"a lane has no sample; look at {shares[0].url}")
