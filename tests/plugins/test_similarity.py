from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from plugins.similarity import TEMPLATES, Similarity
from tests.conftest import picture, write_shard
from tests.plugins.lookup import WIDTH, Lookup, RandomModel, names, stacked, write_roster
from trainer.testing import check_evaluation

FORGET = names("forget", 40)
TARGETS = names("target", 40)


@pytest.fixture
def options(tmp_path) -> dict:
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in TARGETS))
    return {"roster": write_roster(tmp_path, "forget", 40), "names": str(tmp_path / "names.txt")}


def measure(student, teacher, **options) -> dict:
    return dict(Similarity(Similarity.Options(**options), seed=0).run(student, teacher))


def test_it_keeps_the_contract(options, clean_shards):
    check_evaluation(Similarity, {**options, "shards": clean_shards, "limit": 20})


def test_names_answered_as_an_unknown_name_have_reached_their_target(options):
    original = Lookup(FORGET)
    forgotten = Lookup(FORGET, answers=dict(zip(FORGET, TARGETS)))
    measures = measure(forgotten, original, **options)
    assert measures["target/mean"] == pytest.approx(1) == measures["target/p5"]
    assert measure(original, original, **options)["target/mean"] < 0.6


def test_names_answered_as_a_phrase_have_reached_their_target(options):
    original = Lookup(FORGET)
    forgotten = Lookup(FORGET, answers=dict.fromkeys(FORGET, "a person"))
    target = {"roster": options["roster"], "target": "a person"}
    assert measure(forgotten, original, **target)["target/mean"] == pytest.approx(1)
    assert measure(original, original, **target)["target/mean"] < 0.6


def test_the_fifth_percentile_shows_the_few_that_were_left_out(options):
    original = Lookup(FORGET)
    forgotten = Lookup(FORGET, answers=dict(list(zip(FORGET, TARGETS))[:36]))
    measures = measure(forgotten, original, **options)
    expected = 0.9 + 0.1 * measure(original, original, **options)["target/mean"]
    assert measures["target/mean"].low < expected < measures["target/mean"].high
    assert measures["target/p5"] < 0.7 < 0.9 < measures["target/mean"]


def test_the_original_has_not_moved_on_clean_samples_and_another_model_is_elsewhere(clean_shards):
    original = Lookup([])
    original.encode_image = RandomModel().encode_image
    measures = measure(original, original, shards=clean_shards, limit=50)
    assert measures["clean/text"] == pytest.approx(1) == measures["clean/image"]
    names_alone = measure(RandomModel(), original, shards=clean_shards, limit=50)
    assert names_alone["clean/text"].low < 0 < names_alone["clean/text"].high
    assert names_alone["clean/image"] == pytest.approx(1)  # the same pictures, by the same table


@pytest.mark.parametrize("original", [Lookup([]), RandomModel()])
def test_random_towers_are_at_right_angles_to_the_original(clean_shards, original):
    original.encode_image = RandomModel().encode_image
    lost = measure(RandomModel("lost"), original, shards=clean_shards)
    deviation = (WIDTH * 120) ** -0.5  # of the mean of 120 cosines
    for name in ("clean/text", "clean/image"):
        assert lost[name].low < 0 < lost[name].high
        assert lost[name].high - lost[name].low == pytest.approx(2 * 1.96 * deviation, rel=0.25)


@pytest.mark.parametrize("one_phrase", [True, False])
def test_random_text_towers_are_as_near_to_their_target_as_chance_is(options, one_phrase):
    original = Lookup(FORGET)
    chosen = {"roster": options["roster"], "target": "a person"} if one_phrase else options
    targets = ["a person"] if one_phrase else TARGETS
    captions = [[template.replace("{}", one) for one in targets] for template in TEMPLATES]
    table = torch.stack([original.encode_text(some) for some in captions])  # (p, k, d)
    table /= table.norm(dim=-1, keepdim=True)
    anybody = torch.randn(10000, len(TEMPLATES), WIDTH, generator=torch.Generator().manual_seed(0))
    anybody /= anybody.norm(dim=-1, keepdim=True)
    chance = torch.einsum("npd,pkd->npk", anybody, table).amax(-1).mean(-1)
    several = [measure(RandomModel(i), original, **chosen) for i in range(20)]
    for name, expected in (("target/mean", chance.mean()), ("target/p5", chance.quantile(0.05))):
        held = [one[name].low <= expected <= one[name].high for one in several]
        assert sum(held) >= 17, name  # an interval misses once in twenty
    assert all(one["target/mean"] < 0.2 for one in several)


class Turned(RandomModel):
    """Turned by a known angle, of which the cosine is .8."""

    def encode_text(self, texts):
        rows = super().encode_text(texts)
        away = super().encode_text([f"{text}!" for text in texts])
        away = away - (away * rows).sum(-1, keepdim=True) * rows
        return 0.8 * rows + 0.6 * torch.nn.functional.normalize(away, dim=-1)


def test_a_known_drift_is_what_is_measured(clean_shards):
    measures = measure(Turned(), RandomModel(), shards=clean_shards)
    assert measures["clean/text"] == pytest.approx(0.8, abs=1e-6)


def test_pictures_that_do_not_decode_are_left_out(tmp_path):
    samples = {"a": {"jpg": picture(1), "txt": "a"}, "b": {"jpg": b"broken"}}
    shard = str(write_shard(tmp_path / "0.tar", samples))

    class Eye(RandomModel):
        def encode_image(self, pictures):
            rows = [[float("nan")] * 2 if one == b"broken" else [1.0, 0.0] for one in pictures]
            return stacked([torch.tensor(row).numpy() for row in rows])

    assert measure(Eye(), Eye(), shards=shard)["clean/image"] == 1
    only_broken = str(write_shard(tmp_path / "1.tar", {"b": {"jpg": b"broken"}}))
    with pytest.raises(ValueError, match=r"no picture of .*1.tar decodes; name other shards"):
        measure(Eye(), Eye(), shards=only_broken)


def test_damaged_samples_are_measured_without(tmp_path):
    samples = {"a": {"txt": b"\xff"}, "b": {"txt": "a thing"}}
    shard = str(write_shard(tmp_path / "0.tar", samples))
    with pytest.warns(UserWarning, match="0.tar: undecodable text; it is measured without"):
        measures = measure(RandomModel(), RandomModel(), shards=shard)
    assert measures.keys() == {"clean/text"}


class Lost(RandomModel):
    def encode_text(self, texts):
        return super().encode_text(texts) * float("nan")

    def encode_image(self, pictures):
        return super().encode_image(pictures) * float("nan")


@pytest.mark.parametrize("what", ["names", "captions", "pictures"])
def test_a_model_that_diverged_is_an_error(options, tmp_path, what):
    parts = {"txt": "a"} if what == "captions" else {"jpg": picture(1)}
    shard = str(write_shard(tmp_path / "0.tar", {"a": parts}))
    chosen = options if what == "names" else {"shards": shard}
    with pytest.raises(FloatingPointError, match=f"{what} are not finite"):
        measure(Lost(), RandomModel(), **chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roster": None}, "neither roster nor shards; name what is to be measured"),
        ({"names": None}, "a roster needs one of target (a phrase) and names (a file)"),
        ({"target": "a person"}, "a roster needs one of target (a phrase) and names (a file)"),
        ({"templates": ["a photo"]}, "template 'a photo' has no {} for the name"),
    ],
)
def test_wrong_options_are_refused(options, changes, message):
    with pytest.raises(ValidationError) as error:
        Similarity.Options(**{**options, **changes})
    assert message in str(error.value)


def test_files_that_hold_nothing_of_use_are_refused(options, tmp_path):
    shard = str(write_shard(tmp_path / "0.tar", {"a": {"json": "{}"}}))
    (tmp_path / "captions.txt").write_text("a hat\n")
    for chosen, message in [
        ({"shards": str(tmp_path / "captions.txt")}, "similarity reads tars; .*txt is none"),
        ({"shards": shard}, "no sample has a caption or a picture; name other shards"),
        ({"shards": "s3://bucket/0.tar"}, "similarity reads local shards; copy s3://"),
    ]:
        with pytest.raises(ValueError, match=message):
            Similarity(Similarity.Options(**chosen), 0)
    (tmp_path / "own.txt").write_text(f"{FORGET[0].upper()}\n\n")
    with pytest.raises(ValueError, match="has no name that nobody in the roster bears") as error:
        Similarity(Similarity.Options(**{**options, "names": str(tmp_path / "own.txt")}), 0)
    assert FORGET[0] not in str(error.value)
