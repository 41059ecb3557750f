from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plugins.retrieval import Retrieval, wrong_before_right
from tests.conftest import picture, write_shard
from tests.plugins.lookup import RandomModel, direction, stacked
from trainer import rate
from trainer.data.samples import LocalSample
from trainer.testing import check_evaluation


class Pairs:
    """An `Encoder` in which every caption lies where its picture does, as the table says."""

    def __init__(self, places: dict[bytes | str, object]):
        self._places = places

    def encode_text(self, texts):
        return stacked([direction(self._places[text]) for text in texts])

    def encode_image(self, pictures):
        rows = [self._places.get(pictures[i]) for i in range(len(pictures))]
        nothing = float("nan") * direction(0)
        return stacked([nothing if row is None else direction(row) for row in rows])


def write_pairs(folder, count: int, captions: int = 1) -> tuple[str, dict]:
    """A shard of `count` pictures and the table in which each lies with its captions."""
    samples, places = {}, {}
    for i in range(count):
        lines = [f"caption {j} of picture {i}" for j in range(captions)]
        data = b"picture %d" % i
        samples[f"{i:04d}"] = {"jpg": data, "txt": "\n".join(lines)}
        places |= {data: i} | dict.fromkeys(lines, i)
    return str(write_shard(folder / "0.tar", samples)), places


def measure(model, **options) -> dict:
    return dict(Retrieval(Retrieval.Options(**options), seed=0).run(model, model))


def test_it_keeps_the_contract(clean_shards):
    check_evaluation(Retrieval, {"shards": clean_shards, "limit": 30})


def test_where_each_caption_lies_with_its_picture_all_are_found(tmp_path):
    shard, places = write_pairs(tmp_path, 30, captions=5)
    measures = measure(Pairs(places), shards=shard)
    for k in (1, 5, 10):
        assert measures[f"image_to_text/recall_{k}"] == measures[f"text_to_image/recall_{k}"] == 1
    assert measures["pictures"] == 30 and measures["captions"] == 150 and measures["skipped"] == 0


def test_a_model_that_knows_nothing_finds_by_chance(tmp_path):
    shard, _ = write_pairs(tmp_path, 400)
    measures = measure(RandomModel(), shards=shard)
    for way in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            found = measures[f"{way}/recall_{k}"]
            assert found.low <= k / 400 <= found.high


def test_a_model_that_sees_all_alike_finds_nothing(tmp_path):
    shard, places = write_pairs(tmp_path, 30)
    measures = measure(Pairs(dict.fromkeys(places, "the same")), shards=shard)
    assert measures["text_to_image/recall_10"] == 0  # not 1: a tie counts against the model


def test_the_known_share_of_wrong_captions_is_measured_within_its_interval(tmp_path):
    shard, places = write_pairs(tmp_path, 200, captions=2)
    for i in range(50):  # a quarter of the pictures lies elsewhere
        places[b"picture %d" % i] = f"elsewhere {i}"
    measures = measure(Pairs(places), shards=shard)
    for way in ("image_to_text", "text_to_image"):
        found = measures[f"{way}/recall_1"]
        assert found.low < 0.75 < found.high and abs(found - 0.75) < 0.02  # one or two by chance
        # Two captions of a picture are one case: as wide as of 200, not of 400.
        as_wide = rate(150, 200)
        assert found.high - found.low == pytest.approx(as_wide.high - as_wide.low, abs=0.002)


def test_a_caption_of_several_pictures_is_right_with_each(tmp_path):
    texts = ["a dog", "a dog", "a cat", "a bird"]
    samples = {f"{i}": {"jpg": b"%d" % i, "txt": text} for i, text in enumerate(texts)}
    shard = str(write_shard(tmp_path / "0.tar", samples))
    model = Pairs({b"0": "dog", b"1": "other dog", b"2": "cat", b"3": "bird"} | {
        "a dog": "dog", "a cat": "cat", "a bird": "bird"
    })  # fmt: skip
    measures = measure(model, shards=shard)
    assert measures["captions"] == 3 and measures["text_to_image/recall_1"] == 1


def test_the_ranks_are_those_of_a_literal_count():
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(37, 8, generator=generator), dim=-1)
    candidates = F.normalize(torch.randn(90, 8, generator=generator), dim=-1)
    owned = torch.stack([torch.arange(90) % 37, torch.arange(90)])
    literal = []
    for i, query in enumerate(queries):
        cosines = [float(query @ candidate) for candidate in candidates]
        best = max(cosines[j] for j in range(90) if j % 37 == i)
        literal.append(sum(cosines[j] > best for j in range(90) if j % 37 != i))
    for chunk in (5, 37, 1000):
        assert wrong_before_right(queries, candidates, owned, chunk).tolist() == literal


def test_what_has_no_caption_or_does_not_decode_is_skipped_and_counted(tmp_path):
    shard, places = write_pairs(tmp_path, 12)
    more = {
        "a": {"jpg": b"picture of no place", "txt": "caption 0 of picture 0"},
        "b": {"jpg": b"picture 1"},
        "c": {"txt": "caption 1 of picture 1"},
        "d": {"jpg": b"picture 2", "txt": b"\xff"},
    }
    second = str(write_shard(tmp_path / "1.tar", more))
    with pytest.warns(UserWarning, match="1.tar: undecodable text; it is measured without"):
        evaluation = Retrieval(Retrieval.Options(shards=[shard, second]), 0)
    measures = dict(evaluation.run(Pairs(places), Pairs(places)))
    assert measures["pictures"] == 12 and measures["skipped"] == 4
    assert measures["image_to_text/recall_1"] == 1


def test_only_as_many_pictures_as_asked_for_are_read(tmp_path, monkeypatch):
    read, own = [], LocalSample.read

    def noting(sample, part):
        content = own(sample, part)
        if part == "picture":
            read.append(content)
        return content

    monkeypatch.setattr(LocalSample, "read", noting)
    shard, places = write_pairs(tmp_path, 12)
    measures = measure(Pairs(places), shards=shard, limit=7)
    assert read == [b"picture %d" % i for i in range(7)]
    assert measures["pictures"] == 7
    assert "image_to_text/recall_5" in measures and "image_to_text/recall_10" not in measures


def test_a_model_that_diverged_is_an_error(tmp_path):
    shard, places = write_pairs(tmp_path, 3)
    with pytest.raises(ValueError, match=r"no picture of .*0.tar gave a finite embedding"):
        measure(Pairs({k: v for k, v in places.items() if isinstance(k, str)}), shards=shard)

    class Dumb(Pairs):
        def encode_text(self, texts):
            return super().encode_text(texts) * float("nan")

    with pytest.raises(FloatingPointError, match="text embeddings are not finite"):
        measure(Dumb(places), shards=shard)


def test_a_student_that_lost_pictures_which_the_teacher_sees_is_an_error(tmp_path):
    """A few rows that overflow are no broken files, be they NaN throughout or not."""
    shard, places = write_pairs(tmp_path, 5)
    broken = str(write_shard(tmp_path / "1.tar", {"a": {"jpg": b"broken", "txt": "caption"}}))
    sound = Pairs(places | {"caption": 0})
    evaluation = Retrieval(Retrieval.Options(shards=[shard, broken]), 0)
    assert dict(evaluation.run(sound, sound))["skipped"] == 1
    lost = Pairs({k: v for k, v in places.items() if k != b"picture 3"} | {"caption": 0})

    class Overflown(Pairs):
        def encode_image(self, pictures):
            rows = super().encode_image(pictures)
            rows[2, 0] = float("inf")
            return rows

    for student in (lost, Overflown(places | {"caption": 0})):
        with pytest.raises(FloatingPointError, match="image embeddings of pictures are not finite"):
            dict(evaluation.run(student, sound))


def test_shards_that_hold_no_pair_or_are_elsewhere_are_refused(tmp_path):
    shard = str(write_shard(tmp_path / "0.tar", {"a": {"jpg": picture(1)}}))
    with pytest.raises(ValueError, match="no sample has both a picture and a caption; name others"):
        Retrieval(Retrieval.Options(shards=shard), 0)
    with pytest.raises(ValueError, match="retrieval reads local shards; copy s3://"):
        Retrieval(Retrieval.Options(shards="s3://bucket/0.tar"), 0)
    (tmp_path / "captions.PARQUET").write_bytes(b"")
    with pytest.raises(ValueError, match="retrieval reads tars; .*captions.PARQUET is none"):
        Retrieval(Retrieval.Options(shards=str(tmp_path / "captions.PARQUET")), 0)
