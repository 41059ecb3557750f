"""Shards to samples: endless, and the same on any number of processes and workers.

The data is dealt to a fixed number of lanes, once. A lane walks its own shards in an order drawn
anew for every lap, shuffles blocks of each, and starts over. Row `turn` of an objective is read
from lane `turn % lanes`, so who reads it does not matter. What a lane gives next follows from its
position alone: a few numbers, which travel with the batch and are all that a resume needs.
"""

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import accumulate, islice
from math import gcd

import braceexpand
import numpy as np

from trainer.api import BadSample, Sample, Source
from trainer.data.captions import LINES, PARQUET
from trainer.data.readers import Reading, Share, read_share
from trainer.system.addresses import is_remote, shown

GOLDEN = 0.6180339887498949  # its multiples spread evenly over the unit interval, at any length
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def expand(patterns: Sequence[str]) -> list[str]:
    """Brace patterns and globs to shard paths or addresses, each existing if it is local."""
    urls = [url for pattern in patterns for url in _expand(pattern)]
    local = [url for url in urls if not is_remote(url)]
    if missing := [url for url in local if not os.path.isfile(url)]:
        raise FileNotFoundError(
            f"shard {missing[0]} is not there ({len(missing)} of {len(urls)} are missing)"
        )
    if packed := [url for url in urls if _is_compressed(url)]:
        fetch = "curl -s URL | zcat" if is_remote(packed[0]) else f"zcat {packed[0]}"
        raise ValueError(
            f"shard {shown(packed[0])} is compressed and cannot be read by position; unpack it, or "
            f"name it as 'pipe:{fetch}'"
        )
    if not urls:
        raise FileNotFoundError("no shards were named")
    return urls


def _is_compressed(url: str) -> bool:
    path = url.partition("?")[0] if is_remote(url) else url
    return not url.startswith("pipe:") and path.lower().endswith(COMPRESSED)


def expand_local(patterns: Sequence[str], reader: str) -> list[str]:
    """For whom reads them at random. Raises ValueError, in its name, for shards elsewhere and for
    captions alone."""
    shards = expand(patterns)
    if remote := [shard for shard in shards if is_remote(shard)]:
        raise ValueError(f"{reader} reads local shards; copy {shown(remote[0])} to a disk")
    if others := [shard for shard in shards if shard.lower().endswith((*LINES, *PARQUET))]:
        raise ValueError(f"{reader} reads tars; {others[0]} is none")
    return shards


def _expand(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]  # its own name may have brackets
    try:
        found = list(braceexpand.braceexpand(pattern))
    except ValueError:
        raise ValueError(
            f"{shown(pattern)} is not a pattern of shards; see to its braces"
        ) from None
    if has_magic(pattern) and not is_remote(pattern):
        found = sorted(path for one in found for path in glob(one))
        if not found:
            raise FileNotFoundError(f"no shard matches {pattern}")
    return found


def deal(urls: Sequence[str], lanes: int, seed: int) -> list[list[Share]]:
    """Each lane's shares: whole shards, or parts of them where there are fewer than lanes."""
    parts = 1 if len(urls) >= lanes else lanes // gcd(lanes, len(urls))
    shares = [Share(url, part, parts) for url in urls for part in range(parts)]
    order = np.random.default_rng([seed, 0xDEA1]).permutation(len(shares))
    return [[shares[i] for i in order[lane::lanes]] for lane in range(lanes)]


@dataclass(frozen=True)
class Dealt:
    """An objective's sources, each dealt to all lanes."""

    shares: tuple[list[list[Share]], ...]  # by source, then by lane
    weights: tuple[float, ...]

    @staticmethod
    def of(sources: Sequence[str | Source], lanes: int, seed: int) -> Dealt:
        """Shards that are named without a weight are together one source, of weight 1."""
        plain = [one for one in sources if isinstance(one, str)]
        weighted = [one for one in sources if isinstance(one, Source)]
        all_of = [Source(shards=plain), *weighted] if plain else weighted
        return Dealt(
            tuple(deal(expand(one.shards), lanes, seed) for one in all_of),
            tuple(one.weight for one in all_of),
        )

    @property
    def parts_elsewhere(self) -> int:
        """Of the shards that are not on a disk, in how many each is cut at most."""
        shares = (share for source in self.shares for lane in source for share in lane)
        return max((one.parts for one in shares if is_remote(one.url)), default=1)


@dataclass(slots=True)
class Position:
    """Where a lane stands in a source: the lap, the shard's place in it, samples taken of that."""

    lap: int = 0
    place: int = 0
    taken: int = 0

    def go_to(self, place: int, num_places: int) -> None:
        """To the begin of a shard, of the next lap's first after the last."""
        self.lap, self.place, self.taken = self.lap + place // num_places, place % num_places, 0


class Lane:
    """One lane of an objective: endless, from one or several sources by their weights.

    shuffle: samples that are mixed, neighbours in a share. state: what `state` gave before.
    """

    def __init__(
        self,
        dealt: Dealt,
        lane: int,
        seed: int,
        shuffle: int,
        reading: Reading,
        state: Sequence[int] = (),
    ):
        self._dealt, self._lane, self._seed = dealt, lane, seed
        self._shuffle, self._reading = shuffle, reading
        count = 3 * len(dealt.shares)
        self._drawn, *rest = state or (0,)
        self._begin([Position(*rest[i : i + 3]) for i in range(0, count, 3)], sum(rest[count:]))
        total = sum(dealt.weights)
        self._bounds = [bound / total for bound in accumulate(dealt.weights)][:-1]
        self._phase = np.random.default_rng([seed, lane, 0x9A5E]).random() if self._bounds else 0.0

    def _begin(self, positions: list[Position], further: int) -> None:
        """further: whose shares it reads, so many lanes after itself; ordinarily its own."""
        self._further, self.positions = further, positions
        self._readers = [
            read_lane(
                shares[(self._lane + further) % len(shares)],
                self._lane,
                [self._seed, source],
                self._shuffle,
                self._reading,
                position,
            )
            for source, (shares, position) in enumerate(
                zip(self._dealt.shares, positions, strict=True)
            )
        ]

    @property
    def laps(self) -> int:
        """That all its sources have behind them."""
        return min(one.lap for one in self.positions)

    def stand_in(self) -> bool:
        """From here on the next lane's shares, for nothing of its own was of use in a whole lap:
        damaged shards must not end a run of which they are a small part. False after the last.
        """
        num_lanes = len(self._dealt.shares[0])
        if self._further + 1 >= num_lanes:
            return False
        self._begin([Position() for _ in self._dealt.shares], self._further + 1)
        return True

    def __iter__(self) -> Iterator[Sample | BadSample]:
        return self

    def __next__(self) -> Sample | BadSample:
        if not self._bounds:
            return next(self._readers[0])
        # By the count of draws alone: a source has its share in any stretch of them.
        source = bisect(self._bounds, (self._phase + self._drawn * GOLDEN) % 1.0)
        sample = next(self._readers[source])
        self._drawn += 1
        return sample

    @property
    def state(self) -> list[int]:
        """Draws from several sources, then of each the position of its next sample; and, where it
        stands in for itself no more, whose shares they are."""
        state = [self._drawn]
        for one in self.positions:
            state += (one.lap, one.place, one.taken)
        return [*state, self._further] if self._further else state


def read_lane(
    shares: Sequence[Share],
    lane: int,
    seed: Sequence[int],
    shuffle: int,
    reading: Reading,
    position: Position,
) -> Iterator[Sample | BadSample]:
    """A lane's samples for ever; a lap gives each of them once.

    position: where to begin. With each sample it becomes that of the next.
    """
    is_empty = False
    while not is_empty:
        lap, first = position.lap, position.place
        order = np.random.default_rng([*seed, lane, lap]).permutation(len(shares))
        is_empty = first == position.taken == 0
        for place in range(first, len(shares)):
            first_block, inside = divmod(position.taken, shuffle)
            samples = read_share(shares[order[place]], first_block * shuffle, reading)
            for block, (window, is_last) in enumerate(windows(samples, shuffle), first_block):
                is_empty = False
                mixed = np.random.default_rng([*seed, lane, lap, place, block])
                *others, last = mixed.permutation(len(window)).tolist()
                for i in others[inside:]:
                    position.taken += 1
                    yield window[i]
                    if reading.with_pictures:  # what it decoded; captions are faster kept together
                        window[i] = None
                position.taken += 1
                if is_last:
                    position.go_to(place + 1, len(shares))
                yield window[last]
                inside = 0
            if (position.lap, position.place) == (lap, place):  # nothing was left, or there at all
                position.go_to(place + 1, len(shares))
    raise ValueError(_why_empty(shares, lane))


def windows(samples: Iterator, size: int) -> Iterator[tuple[list, bool]]:
    """Neighbours together, and whether none follow: one is read ahead for that.

    It must be known before the last is given: who resumes after it should open no shard in vain.
    """
    window = list(islice(samples, size))
    while window:
        follows = list(islice(samples, 1))
        yield window, not follows
        window = follows + list(islice(samples, size - 1)) if follows else []


def _why_empty(shares: Sequence[Share], lane: int) -> str:
    first = shares[0]
    others = f" nor have {len(shares) - 1} others" if len(shares) > 1 else ""
    part = f" in part {first.part + 1} of {first.parts}" if first.parts > 1 else ""
    return (
        f"lane {lane} has no sample: shard {shown(first.url)} has none{part},{others} so mend or "
        "leave them out, or lower data.lanes"
    )
