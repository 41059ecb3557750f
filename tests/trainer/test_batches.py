from __future__ import annotations

from collections import Counter

import pytest
import torch

from plugins.preserve import Preserve
from tests.conftest import picture, write_shard
from trainer import Pair
from trainer.batches import STUDENT_TEXT, TURN, Batch, pack, stream_batches
from trainer.config import DataConfig
from trainer.streams import deal, expand, read_lane


def batches(clip, shards, *, workers=0, rank=0, ranks=1, steps=4, size=16, lanes=8) -> list[Batch]:
    objectives = {
        "keep": Preserve(Preserve.Options(batch_size=size), seed=0),
        "words": Preserve(Preserve.Options(batch_size=size // 2, towers=["text"]), seed=0),
    }
    data = DataConfig(shards=shards, workers=workers, lanes=lanes, shuffle=10)
    stream = stream_batches(objectives, data, clip, 0, rank, ranks)
    return [next(stream) for _ in range(steps)]


def captions(batch: Batch, name: str) -> dict[int, tuple[int, ...]]:
    """The tokens of each row by its turn, without padding."""
    return {
        int(row[TURN]): tuple(t for t in batch.tokens[row[STUDENT_TEXT]].tolist() if t)
        for row in batch.rows[name]
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_the_batches_are_the_same_for_any_number_of_workers(tiny_clip, clean_shards, workers):
    alone = batches(tiny_clip, [clean_shards])
    shared = batches(tiny_clip, [clean_shards], workers=workers)
    for one, other in zip(alone, shared):
        for name in one.rows:
            assert captions(one, name) == captions(other, name)
            assert one.rows[name][:, TURN].tolist() == other.rows[name][:, TURN].tolist()


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_batches_together_are_one_ranks_batch(tiny_clip, clean_shards, ranks):
    alone = batches(tiny_clip, [clean_shards])
    shared = [batches(tiny_clip, [clean_shards], rank=rank, ranks=ranks) for rank in range(ranks)]
    for step, one in enumerate(alone):
        for name in one.rows:
            together = {k: v for rank in shared for k, v in captions(rank[step], name).items()}
            assert captions(one, name) == together
            assert {len(rank[step].rows[name]) for rank in shared} == {len(one.rows[name]) // ranks}


def test_a_lap_of_a_lane_gives_each_sample_once(clean_shards):
    lanes = deal(expand([clean_shards]), 8, seed=3)
    keys = []
    for lane, shares in enumerate(lanes):
        entries = read_lane(shares, lane, 3, 10, with_pictures=False)
        keys += [next(entries)().key for _ in range(15)]
    assert len(keys) == len(set(keys)) == 120


def test_another_seed_gives_another_order(clean_shards):
    def first(seed):
        entries = read_lane(deal(expand([clean_shards]), 2, seed)[0], 0, seed, 10, False)
        return [next(entries)().key for _ in range(10)]

    assert first(0) == first(0) != first(1)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"00001.tar is not there \(1 of 1 are missing\)"):
        expand([str(tmp_path / "00001.tar")])


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shard matches"):
        expand([str(tmp_path / "*.tar")])


def test_bad_samples_are_skipped_and_counted(tiny_clip, tmp_path):
    good = {f"g{i}": {"jpg": picture(i), "txt": f"caption {i}"} for i in range(8)}
    bad = {
        "noise": {"jpg": b"not a picture", "txt": "a caption"},
        "silent": {"jpg": picture(9), "txt": "  "},
        "odd": {"jpg": picture(9), "txt": b"\xff\xfe\xff"},
    }
    shard = write_shard(tmp_path / "0.tar", good | bad)
    found = batches(tiny_clip, [str(shard)], steps=2, lanes=2)
    skipped = sum((batch.skipped for batch in found), Counter())
    assert {"undecodable picture", "no caption", "undecodable text"} <= set(skipped)


def test_a_shard_cut_in_the_middle_is_used_as_far_as_it_goes(tiny_clip, tmp_path):
    shard = write_shard(
        tmp_path / "0.tar", {f"g{i}": {"jpg": picture(i), "txt": f"caption {i}"} for i in range(8)}
    )
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.warns(UserWarning, match="samples before it are used"):
        (batch,) = batches(tiny_clip, [str(shard)], steps=1, lanes=2)
    assert len(batch.rows["keep"]) == 16


def test_a_step_that_does_not_divide_is_refused_with_the_next_size(tiny_clip, clean_shards):
    with pytest.raises(ValueError, match="set objectives.keep.batch_size=18"):
        batches(tiny_clip, [clean_shards], ranks=3, size=16, lanes=9)
    with pytest.raises(ValueError, match="set data.lanes=9"):
        batches(tiny_clip, [clean_shards], ranks=3, size=18, lanes=8)


def test_a_caption_that_repeats_is_tokenised_and_run_once(tiny_clip):
    same = Pair(student_text="a dog", teacher_text="a dog")
    batch = pack({"x": [(0, same), (1, same)]}, tiny_clip.tokenize, tiny_clip.prepare, {})
    assert len(batch.tokens) == 1
    assert torch.equal(batch.seen_by(STUDENT_TEXT), torch.tensor([0]))
