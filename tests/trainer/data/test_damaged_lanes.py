"""Lanes whose shards are damaged: a few of many must not end a run, nor change other lanes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from plugins.preserve import Preserve
from tests.conftest import write_shard
from trainer.configuration.sections import DataConfig
from trainer.data.index import CHANGED, open_shard
from trainer.data.indexing import index_shards
from trainer.data.preview import KeysBuilder
from trainer.data.skips import Skips
from trainer.data.steps import Steps, StreamState

LANES, SAMPLES, STEPS = 8, 6, 20


def whole_shards(folder: Path, count: int = LANES) -> list[Path]:
    folder.mkdir()
    return [
        write_shard(
            folder / f"{shard}.tar",
            {f"{shard}{i:03}": {"txt": f"thing {i}"} for i in range(SAMPLES)},
        )
        for shard in range(count)
    ]


def drawn(
    shards: Sequence[Path | str], steps: int, first: StreamState | None = None, rank=0, ranks=1
) -> tuple[list[list[str]], StreamState, Skips]:
    """Of each step the keys; where the lanes stand then; what was passed over."""
    open_shard.cache_clear()
    objective = Preserve(Preserve.Options(batch_size=LANES, towers=["text"]), seed=0)
    data = DataConfig(shards=list(map(str, shards)), workers=0, lanes=LANES, shuffle=4)
    build = partial(KeysBuilder, ["keep"])
    stream = Steps({"keep": objective}, data, 0, rank, ranks, build, resume=first)
    found = list(islice(stream, steps))
    step = steps + (first.step if first else 0)
    skips = Skips()
    for one in found:
        skips += one.skips
    keys = [[key for _, key, _ in one.rows["keep"]] for one in found]
    return keys, StreamState(step, stream.order, found[-1].positions), skips


def changed(path: Path) -> None:
    index_shards([str(path)], None, 1)
    with open(path, "ab") as file:
        file.write(bytes(512))


def cut(path: Path) -> None:
    os.truncate(path, 700)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [changed, cut, emptied])
@pytest.mark.parametrize("count", [LANES, LANES // 2])  # a shard a lane, or half of one
def test_a_lane_of_a_damaged_shard_goes_on_with_the_next_lanes(tmp_path, damage, count):
    shards = whole_shards(tmp_path / "shards", count)
    whole, _, _ = drawn(shards, STEPS)
    damage(shards[1])
    keys, _, skips = drawn(shards, STEPS)
    is_hit = [any(key.startswith("1") for key in column) for column in zip(*whole)]
    assert sum(is_hit) == LANES // count
    for hit, before, after in zip(is_hit, zip(*whole), zip(*keys), strict=True):
        assert (before == after) != hit
        assert not any(key.startswith("1") for key in after) or damage is cut
    assert skips.bad.total() > 0
    assert damage is cut or skips.bad.total() <= 4 * SAMPLES  # it is read no more
    assert {shard for shard, _ in skips.bad} == {str(shards[1])}


def test_a_lane_that_reads_anothers_goes_on_there_and_on_any_number_of_processes(tmp_path):
    shards = whole_shards(tmp_path / "shards")
    for path in shards[1:4]:  # next lanes may be damaged as well
        changed(path)
    keys, _, _ = drawn(shards, STEPS)
    for stop in (1, 7, 13):
        first, state, _ = drawn(shards, stop)
        state = StreamState.from_json(state.to_json())
        rest, _, skips = drawn(shards, STEPS - stop, state)
        assert first + rest == keys
        assert not skips.bad
    parts = [drawn(shards, STEPS, rank=rank, ranks=2)[0] for rank in (0, 1)]
    together = [[key for pair in zip(*step) for key in pair] for step in zip(*parts)]
    assert together == keys


def test_where_all_shards_are_damaged_the_run_ends(tmp_path):
    shards = whole_shards(tmp_path / "shards")
    for path in shards:
        changed(path)
    with pytest.raises(ValueError, match=rf"none of \d+ samples .*\({CHANGED} \d+\)"):
        drawn(shards, 1)
