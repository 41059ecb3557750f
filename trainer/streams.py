"""Shards to samples: endless, and the same on any number of processes and workers.

The data is dealt to a fixed number of lanes, once. A lane walks its own shards in an order drawn
anew for every lap, shuffles blocks of each, and starts over. Row `turn` of an objective is read
from lane `turn % lanes`, so who reads it does not matter.
"""

from __future__ import annotations

import json
import os
import tarfile
import warnings
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
from trainer.shards import PICTURES, Extent, Shard, open_shard, read_extent

Entry = Callable[[], Sample]  # reads the sample; raises BadSample
MAX_CAPTION_BYTES = 20_000  # a tower reads some 77 words of it
MAX_BYTES = {"txt": MAX_CAPTION_BYTES, "json": 1_000_000, "cls": 1_000}
MAX_PICTURE_BYTES = 200_000_000


@dataclass(frozen=True)
class Share:
    """Every `parts`-th sample of a shard, from the `part`-th on."""

    url: str
    part: int
    parts: int


def expand(patterns: Sequence[str]) -> list[str]:
    """Brace patterns and globs to shard paths or addresses, each existing if it is local."""
    urls = [url for pattern in patterns for url in _expand(pattern)]
    missing = [url for url in urls if not is_remote(url) and not os.path.isfile(url)]
    if missing:
        raise FileNotFoundError(
            f"shard {missing[0]} is not there ({len(missing)} of {len(urls)} are missing)"
        )
    if not urls:
        raise FileNotFoundError("no shards were named")
    return urls


def _expand(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]  # its own name may have brackets
    try:
        found = list(braceexpand.braceexpand(pattern))
    except ValueError:
        raise ValueError(f"{pattern} is not a pattern of shards; see to its braces") from None
    if has_magic(pattern) and not is_remote(pattern):
        found = sorted(path for one in found for path in glob(one))
        if not found:
            raise FileNotFoundError(f"no shard matches {pattern}")
    return found


def is_remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def deal(urls: Sequence[str], lanes: int, seed: int) -> list[list[Share]]:
    """Each lane's shares: whole shards, or parts of them where there are fewer than lanes."""
    parts = 1 if len(urls) >= lanes else lanes // gcd(lanes, len(urls))
    shares = [Share(url, part, parts) for url in urls for part in range(parts)]
    order = np.random.default_rng([seed, 0xDEA1]).permutation(len(shares))
    return [[shares[i] for i in order[lane::lanes]] for lane in range(lanes)]


def read_share(share: Share, with_pictures: bool) -> Iterator[Entry]:
    """A share's samples in order, each read only when called for.

    with_pictures: else a picture's bytes stay untouched.
    """
    if is_remote(share.url):
        names = (*MAX_BYTES, *(PICTURES if with_pictures else ()))
        for key, parts in islice(_read_remote(share.url), share.part, None, share.parts):
            wanted = {name: parts[name] for name in names if name in parts}
            yield partial(to_sample, key, wanted)
    else:
        for key, extents in open_shard(share.url).samples[share.part :: share.parts]:
            yield partial(_read_entry, share.url, key, extents, with_pictures)


def _read_entry(url: str, key: str, extents: dict[str, Extent], with_pictures: bool) -> Sample:
    wanted = {name: extents[name] for name in MAX_BYTES if name in extents}
    if with_pictures and (picture := Shard.picture(extents)):
        wanted[PICTURES[0]] = picture
    for name, (_, size) in wanted.items():
        _check_size(name, size)
    return to_sample(key, {name: read_extent(url, extent) for name, extent in wanted.items()})


def _check_size(name: str, size: int) -> None:
    """Before it is read, where it lies on a disk."""
    if size > MAX_BYTES.get(name, MAX_PICTURE_BYTES):
        what = {"txt": "caption", "json": "json", "cls": "cls"}.get(name, "picture file")
        raise BadSample(f"{what} too large")


def _read_remote(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a shard that is streamed. What stands before a damage is used, with a warning.

    Raises ValueError where its download failed: the next may not, and the order must not depend
    on that.
    """
    stream = wds.gopen(url)
    files = wds.tariterators.tar_file_iterator(stream)
    try:
        for parts in wds.tariterators.group_by_keys(file | {"__url__": url} for file in files):
            yield parts.pop("__key__"), parts
    except (tarfile.TarError, ValueError, OSError) as error:
        try:
            stream.close()  # raises where the command that gives it failed
            if isinstance(error, OSError):
                raise error
        except OSError:
            raise ValueError(f"shard {url} cannot be read: its download failed") from None
        what = "a name twice" if isinstance(error, ValueError) else str(error).partition(" @ ")[0]
        warnings.warn(
            f"{url}: a shard is not whole: cut off or damaged ({what}), "
            "the samples before that are used",
            stacklevel=2,
        )


def to_sample(key: str, parts: dict[str, bytes]) -> Sample:
    """By img2dataset's naming: a picture, `txt`, and `json` with an `id` or `cls` for the label.

    A caption of nothing but spaces is none. Raises BadSample.
    """
    for name, content in parts.items():
        _check_size(name, len(content))
    try:
        text = parts["txt"].decode("utf-8").strip() if "txt" in parts else None
        cls = parts["cls"].decode("utf-8").strip() if "cls" in parts else None
    except UnicodeDecodeError:
        raise BadSample("undecodable text") from None
    label = _id_of(parts["json"]) if "json" in parts else None
    image = next((parts[name] for name in PICTURES if name in parts), None)
    if not text and image is None:
        raise BadSample("no caption")
    return Sample(key, text or None, image, label if label is not None else cls)


def _id_of(content: bytes) -> str | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # or nested deeper than Python goes
        raise BadSample("undecodable json") from None
    if not isinstance(found, dict):
        raise BadSample("json is no object")
    label = found.get("id")
    if not isinstance(label, str | int | None):
        raise BadSample("json has an id that is neither text nor a number")
    return None if label is None else str(label)


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
            raise ValueError(_why_empty(shares, lane))


def _why_empty(shares: Sequence[Share], lane: int) -> str:
    first = shares[0]
    others = f" nor have {len(shares) - 1} others" if len(shares) > 1 else ""
    part = f" in part {first.part + 1} of {first.parts}" if first.parts > 1 else ""
    return (
        f"lane {lane} has no sample: shard {first.url} has none{part},{others} so mend or leave "
        "them out, or lower data.lanes"
    )
