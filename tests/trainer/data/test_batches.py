from __future__ import annotations

import warnings
import weakref
from random import Random

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from plugins.face_to_neutral import FaceToNeutral
from plugins.name_to_person import NameToPerson
from plugins.preserve import Preserve
from tests.conftest import picture, write_people, write_shard
from tests.trainer.webserver import serving
from trainer import BadSample, Objective, Pair, Sample, Tower
from trainer.configuration.sections import DataConfig
from trainer.data import rows as rows_of
from trainer.data.batches import (
    LABEL,
    STUDENT_IMAGE,
    STUDENT_TEXT,
    TURN,
    Batch,
    BatchBuilder,
    Batches,
)
from trainer.data.readers import Reading
from trainer.data.remote import Patience
from trainer.data.rows import TurnRandom
from trainer.data.skips import Skips
from trainer.data.steps import Steps
from trainer.data.streams import Position, deal, expand, read_lane


def batches(clip, shards, *, workers=0, rank=0, ranks=1, steps=4, size=16, lanes=8) -> list[Batch]:
    objectives = {
        "keep": Preserve(Preserve.Options(batch_size=size), seed=0),
        "words": Preserve(Preserve.Options(batch_size=size // 2, towers=["text"]), seed=0),
    }
    data = DataConfig(shards=shards, workers=workers, lanes=lanes, shuffle=10)
    stream = Batches(objectives, data, clip, 0, rank, ranks)
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


def test_captions_are_read_as_the_configuration_says(tiny_clip, tmp_path, monkeypatch):
    """From elsewhere a Parquet file is read only where it may be kept."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    others = [f"the label of thing {i}" for i in range(8)]
    wanted = [f"what is said of thing {i}" for i in range(8)]
    parquet.write_table(pa.table({"caption": others, "said": wanted}), tmp_path / "0.parquet")
    words = Preserve(Preserve.Options(batch_size=8, towers=["text"]), seed=0)
    options = {"cache": str(tmp_path / "kept"), "caption_column": "said", "workers": 0, "lanes": 1}
    with serving({"/0.parquet": (tmp_path / "0.parquet").read_bytes()}) as server:
        data = DataConfig(shards=[server.url("/0.parquet")], **options)
        batch = next(Batches({"words": words}, data, tiny_clip, 0, 0, 1))
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_bytes() == (tmp_path / "0.parquet").read_bytes()
    tokens = {tuple(t for t in row.tolist() if t) for row in tiny_clip.tokenize(wanted)}
    assert set(captions(batch, "words").values()) == tokens


def test_lanes_read_as_the_configuration_says(tmp_path):
    shard = write_shard(tmp_path / "0.tar", {"0": {"txt": "a dog"}})
    words = Preserve(Preserve.Options(batch_size=8, towers=["text"]), seed=0)
    options = {"index": "indexes", "cache": "kept", "caption_column": "said"}
    data = DataConfig(shards=[str(shard)], lanes=1, patience_seconds=7, **options)
    steps = Steps({"words": words}, data, 0, 0, 1, pytest.fail, min_side=64)
    (lane,) = steps._rows("words", [0])._lanes.values()
    patience = Patience(seconds=7)
    assert lane._reading == Reading(False, min_side=64, patience=patience, **options)


def test_objectives_are_told_what_is_enough_of_a_picture(tiny_clip, clean_shards):
    objective = Preserve(Preserve.Options(batch_size=8), seed=0)
    assert objective.min_side is None
    Batches({"keep": objective}, DataConfig(shards=[clean_shards], workers=0), tiny_clip, 0, 0, 1)
    assert objective.min_side == max(tiny_clip.prepare.size)


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
        samples = read_lane(shares, lane, [3], 10, Reading(), Position())
        keys += [next(samples).key for _ in range(15)]
    assert len(keys) == len(set(keys)) == 120


def test_a_picture_that_was_used_is_not_kept(clean_shards):
    lanes = deal(expand([clean_shards]), 1, seed=3)
    samples = read_lane(lanes[0], 0, [3], 20, Reading(), Position())
    seen = [weakref.ref(next(samples)) for _ in range(10)]
    assert [one() for one in seen[:-1]] == [None] * 9


def test_another_seed_gives_another_order(clean_shards):
    def first(seed):
        samples = read_lane(
            deal(expand([clean_shards]), 2, seed)[0], 0, [seed], 10, Reading(), Position()
        )
        return [next(samples).key for _ in range(10)]

    assert first(0) == first(0) != first(1)


def test_shards_elsewhere_that_are_fetched_many_times_are_told_of(clean_shards, tmp_path):
    keep = {"keep": Preserve(Preserve.Options(batch_size=8), 0)}
    elsewhere = [f"pipe:cat {path}" for path in expand([clean_shards])]
    number = len(elsewhere)

    def steps(shards, lanes: int, rank: int = 0, cache: str | None = None) -> Steps:
        data = DataConfig(shards=shards, lanes=lanes, cache=cache)
        return Steps(keep, data, 0, rank, 1, pytest.fail)

    with pytest.warns(
        UserWarning, match="objectives.keep: .* each is fetched 4 times .*data.cache"
    ):
        steps(elsewhere, 4 * number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(elsewhere, number)
        steps(elsewhere, 4 * number, cache=str(tmp_path))
        steps(elsewhere, 4 * number, rank=1)
        steps([clean_shards], 4 * number)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"00001.tar is not there \(1 of 1 are missing\)"):
        expand([str(tmp_path / "00001.tar")])


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shard matches"):
        expand([str(tmp_path / "*.tar")])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_skipped_and_counted_by_reason(tiny_clip, tmp_path, workers):
    good = {f"g{i}": {"jpg": picture(i), "txt": f"caption {i}"} for i in range(8)}
    bad = {
        "noise": {"jpg": b"not a picture", "txt": "a caption"},
        "silent": {"jpg": picture(9), "txt": "  "},
        "mute": {"jpg": picture(9)},
        "odd": {"jpg": picture(9), "txt": b"\xff\xfe\xff"},
        "long": {"jpg": picture(9), "txt": "a" * 100_000},
    }
    shard = write_shard(tmp_path / "0.tar", good | bad)
    data = DataConfig(shards=[str(shard)], workers=workers, lanes=1, shuffle=100)
    objectives = {"keep": Preserve(Preserve.Options(batch_size=8), seed=0)}
    stream = Batches(objectives, data, tiny_clip, 0, 0, 1)
    # Two laps and a bit: the bad ones after the last good one of a lap count in the next.
    skips = Skips()
    for _ in range(3):
        skips += next(stream).skips
    reasons = {"undecodable picture", "no caption", "undecodable text", "caption too large"}
    assert skips.reasons.keys() == reasons and skips.used == 24
    assert skips.reasons["no caption"] >= 4 and skips.reasons["caption too large"] in (2, 3)
    assert skips.bad == {(str(shard), reason): n for reason, n in skips.reasons.items()}


def test_a_shard_cut_in_the_middle_is_used_as_far_as_it_goes(tiny_clip, tmp_path):
    shard = write_shard(
        tmp_path / "0.tar", {f"g{i}": {"jpg": picture(i), "txt": f"caption {i}"} for i in range(8)}
    )
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    (batch,) = batches(tiny_clip, [str(shard)], steps=1, lanes=2)
    assert len(batch.rows["keep"]) == 16
    assert batch.skips.bad[str(shard), "shard cut off or damaged"] >= 1


def test_a_step_that_does_not_divide_is_refused_with_the_next_size(tiny_clip, clean_shards):
    with pytest.raises(ValueError, match="set objectives.keep.batch_size=18"):
        batches(tiny_clip, [clean_shards], ranks=3, size=16, lanes=9)
    with pytest.raises(ValueError, match="set data.lanes=9"):
        batches(tiny_clip, [clean_shards], ranks=3, size=18, lanes=8)


def packed(clip, pairs: list[Pair]) -> Batch:
    builder = BatchBuilder(["x"], clip.tokenize, clip.prepare)
    for turn, pair in enumerate(pairs):
        builder.add("x", turn, Sample(f"{turn}"), pair)
    return builder.finish(Skips(), {"x": []})


def test_a_caption_that_repeats_is_tokenised_and_run_once(tiny_clip):
    same = Pair(student_text="a dog", teacher_text="a dog")
    batch = packed(tiny_clip, [same, same])
    assert len(batch.tokens) == 1
    assert torch.equal(batch.seen_by(STUDENT_TEXT), torch.tensor([0]))


# What stops a run


class Picky(Objective):
    """Takes nothing, for a reason of its own; or fails."""

    kind = "picky"
    trains = frozenset({Tower.TEXT})
    error: Exception | None = None

    def pair(self, clean, turn, rng):
        if self.error is not None:
            raise self.error


def stopped(clip, shards, workers: int, error: Exception | None = None, **objectives) -> Exception:
    """What the user gets of a run that cannot go on."""
    picky = Picky(Picky.Options(batch_size=4), seed=0)
    picky.error = error
    data = DataConfig(shards=[shards], workers=workers, lanes=2, shuffle=10)
    stream = Batches(objectives or {"mine": picky}, data, clip, 0, 0, 1)
    with pytest.raises(Exception) as raised:  # noqa: B017
        next(stream)
    return raised.value


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_which_nothing_can_be_used_stop_the_run_in_one_line(
    tiny_clip, clean_shards, workers, monkeypatch
):
    monkeypatch.setattr(rows_of, "MAX_UNUSABLE", 30)
    error = stopped(tiny_clip, clean_shards, workers)
    assert type(error) is ValueError
    assert str(error) == (
        "objectives.mine: none of 30 samples in a row was of use (of no use to mine 30); "
        "look at its shards"
    )
    error = stopped(tiny_clip, clean_shards, workers, BadSample("it is Tuesday"))
    assert "(it is Tuesday 30)" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lane_without_a_sample_stops_the_run_in_one_line(tiny_clip, tmp_path, workers):
    write_shard(tmp_path / "0.tar", {})
    error = stopped(tiny_clip, str(tmp_path / "0.tar"), workers)
    assert type(error) is ValueError
    assert "shard without samples" in str(error) and "\n" not in str(error)
    assert str(error).endswith(f"look at its shards, at {tmp_path}/0.tar first")


def test_an_error_in_a_worker_keeps_its_traceback_for_who_looks_for_it(tiny_clip, clean_shards):
    error = stopped(tiny_clip, clean_shards, 1, ValueError("a mistake of the user"))
    assert str(error).startswith("objectives.mine: ValueError: a mistake of the user (test_batches")
    assert "in pair" in str(error.__cause__)
    bug = stopped(tiny_clip, clean_shards, 1, TypeError("a mistake of ours"))
    assert type(bug) is RuntimeError and "TypeError: a mistake of ours" in str(bug)
    assert "in pair" in str(bug)


class Numbered(Picky):
    kind = "numbered"

    def pair(self, clean, turn, rng):
        return int(clean.text)


class OfAnotherTower(Picky):
    kind = "of_another_tower"

    def pair(self, clean, turn, rng):
        picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
        return Pair(student_text=clean.text, teacher_image=picture)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_python_quotes_in_a_plugins_mistake_is_not_told(tiny_clip, tmp_path, workers):
    write_shard(tmp_path / "0.tar", {"0": {"jpg": picture(1), "txt": "Joe Doe"}})
    numbered = Numbered(Numbered.Options(batch_size=4), seed=0)
    error = stopped(tiny_clip, str(tmp_path / "0.tar"), workers, mine=numbered)
    assert str(error).startswith("objectives.mine: ValueError (test_batches.py:")
    assert "Joe" not in str(error)


def test_a_pair_that_shows_either_model_a_tower_that_is_not_trained_is_refused(
    tiny_clip, clean_shards
):
    of_another = OfAnotherTower(OfAnotherTower.Options(batch_size=4), seed=0)
    error = stopped(tiny_clip, clean_shards, 0, mine=of_another)
    assert "of_another_tower has a teacher_image, but it does not train that" in str(error)


def test_what_is_drawn_takes_nothing_from_the_random_numbers_of_losses(tiny_clip, clean_shards):
    """They go on where they were saved; a stream begins anew."""
    keep = Preserve(Preserve.Options(batch_size=4), seed=0)
    data = DataConfig(shards=[clean_shards], workers=0, lanes=2, shuffle=10)
    before = torch.get_rng_state()
    next(Batches({"keep": keep}, data, tiny_clip, 0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_shard_is_told_of_before_the_first_batch(tiny_clip, tmp_path):
    data = DataConfig(shards=[f"{tmp_path}/no.tar"], lanes=2)
    objectives = {"keep": Preserve(Preserve.Options(batch_size=8), seed=0)}
    with pytest.raises(FileNotFoundError, match="no.tar is not there"):
        Batches(objectives, data, tiny_clip, 0, 0, 1)


# What else must hold


@pytest.mark.parametrize("knows", ["names", "faces"])
def test_a_caption_that_names_someone_to_forget_is_clean_for_nobody(tiny_clip, tmp_path, knows):
    roster = write_people(tmp_path, "f", ["José Quimby"])
    spellings = ["Jose Quimby", "JOSÉ  QUIMBY", "josé-quimby", "Jose\u0301 Quimby"]
    samples = {
        f"{i:02}": {
            "jpg": picture(i),
            "txt": f"{spellings[i // 2 % 4]} sings" if i % 2 else f"dog {i}",
        }
        for i in range(16)
    }
    shard = write_shard(tmp_path / "0.tar", samples)
    objectives = {
        "keep": Preserve(Preserve.Options(batch_size=16), seed=0),
        "names": NameToPerson(NameToPerson.Options(batch_size=16, roster=str(roster)), seed=0),
        "faces": FaceToNeutral(
            FaceToNeutral.Options(batch_size=16, roster=str(roster), target="text", paste=1.0), 0
        ),
    }
    objectives = {name: objectives[name] for name in ("keep", knows)}
    seen: list[str] = []
    for objective in objectives.values():
        pair = objective.pair

        def spy(clean, turn, rng, pair=pair):
            seen.append(clean.text)
            return pair(clean, turn, rng)

        objective.pair = spy
    data = DataConfig(shards=[str(shard)], workers=0, lanes=1, shuffle=10)
    batch = next(Batches(objectives, data, tiny_clip, 0, 0, 1))
    assert set(seen) == {f"dog {i}" for i in range(0, 16, 2)}
    assert batch.skips.reasons[f"vetoed by {knows}"] > 10 and not batch.skips.bad


def test_labels_of_63_bits_reach_the_rows_whole(tiny_clip):
    label = 2**63 - 1
    pairs = [Pair(student_text="a dog", label=label - turn) for turn in range(2)]
    parts = [packed(tiny_clip, pairs) for _ in range(2)]
    for batch in (parts[0], Batch.join(parts, tiny_clip.tokenize.pad_id)):
        assert batch.rows["x"].dtype == torch.int64
        assert set(batch.rows["x"][:, LABEL].tolist()) == {label, label - 1}


def test_workers_without_a_lane_change_nothing(tiny_clip, clean_shards):
    alone = batches(tiny_clip, [clean_shards], lanes=2, steps=2)
    shared = batches(tiny_clip, [clean_shards], lanes=2, steps=2, workers=3)
    for one, other in zip(alone, shared):
        assert captions(one, "keep") == captions(other, "keep")
        assert one.rows["keep"][:, TURN].equal(other.rows["keep"][:, TURN])


def test_the_pictures_of_the_rows_are_the_same_for_any_number_of_workers(tiny_clip, clean_shards):
    def pictures(batch: Batch) -> list[int]:
        places = batch.rows["keep"][:, STUDENT_IMAGE]
        return [int(batch.pixels[place].sum()) for place in places.split(1)]

    alone = batches(tiny_clip, [clean_shards], steps=2)
    shared = batches(tiny_clip, [clean_shards], steps=2, workers=3)
    assert list(map(pictures, alone)) == list(map(pictures, shared))
    assert len(set(pictures(alone[0]))) == 16


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.random(),
        lambda rng: rng.gauss(0, 1),
        lambda rng: rng.choice(range(100)),
        lambda rng: rng.sample(range(100), 5),
        lambda rng: rng.randbytes(5),
        lambda rng: rng.getstate(),
    ],
)
def test_a_turn_draws_what_its_seed_gives_whatever_was_drawn_before(draw):
    rng = TurnRandom()
    for turn in ("one", "two", "one"):
        rng.begin(turn)
        assert draw(rng) == draw(Random(turn))
    rng.begin("three")
    assert [draw(rng), rng.random()] == [draw(again := Random("three")), again.random()]
