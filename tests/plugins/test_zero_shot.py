from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import webdataset as wds
from PIL import Image
from pydantic import ValidationError

from plugins.zero_shot import ZeroShot, class_embeddings, fill, mean_per_class
from tests.plugins.lookup import RandomModel
from trainer import decode_picture

COLOURS = {
    "red": (200, 0, 0),
    "green": (0, 200, 0),
    "blue": (0, 0, 200),
    "yellow": (200, 200, 0),
    "purple": (200, 0, 200),
    "grey": (150, 150, 150),
}


class Eye:
    """An `Encoder` that sees a picture's mean colour, and reads the colour in a caption."""

    def __init__(self):
        self.num_read = 0

    def encode_text(self, texts):
        colours = {text: next((c for c in COLOURS if c in text), None) for text in texts}
        rows = [COLOURS[colours[text]] for text in texts]
        return torch.tensor(rows, dtype=torch.float32)

    def encode_image(self, pictures):
        rows = [self._look(pictures[i]) for i in range(len(pictures))]
        return torch.stack(rows)

    def _look(self, data):
        self.num_read += 1
        try:
            return decode_picture(data).float().mean((1, 2))
        except ValueError:
            return torch.full((3,), float("nan"))


def png(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(int(c) for c in colour)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as shard:
        for i, sample in enumerate(samples):
            shard.write({"__key__": f"{i:06}", **sample})
    return str(path)


def write_benchmark(folder, samples, classes=tuple(COLOURS)):
    """clip_benchmark's layout: the text files one folder above the shards of a split."""
    shard = write_shard(folder / "test" / "0.tar", samples)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} thing\nthe {c} one\n")
    return shard


def labelled(colour: str, label: int | str | None = None) -> dict:
    cls = list(COLOURS).index(colour) if label is None else label
    return {"png": png(COLOURS[colour]), "cls": str(cls).encode()}


def measure(**options) -> dict:
    return dict(ZeroShot(ZeroShot.Options(**options), seed=0).run(Eye(), Eye()))


def test_pictures_of_their_class_are_right(tmp_path):
    shard = write_benchmark(tmp_path, [labelled(colour) for colour in COLOURS])
    measures = measure(shards=shard)
    assert measures == {
        "accuracy": 1, "top_5": 1, "mean_per_class": 1, "samples": 6, "skipped": 0,
    }  # fmt: skip


def test_the_mean_per_class_gives_rare_classes_their_weight(tmp_path):
    mislabelled = labelled("red", label=2)  # a red picture said to be blue
    shard = write_benchmark(tmp_path, [labelled("red")] * 6 + [labelled("blue"), mislabelled])
    measures = measure(shards=[shard])
    assert measures["accuracy"] == 7 / 8
    assert measures["mean_per_class"] == 3 / 4
    assert measures["mean_per_class"].low < 3 / 4 < measures["mean_per_class"].high


def test_the_mean_per_class_has_the_interval_of_a_stratified_sample():
    # 15 of 20 and 1 of 2; for the variance 16 of 22 and 2 of 4
    right = torch.tensor([1.0] * 15 + [0.0] * 5 + [1.0, 0.0], dtype=torch.float64)
    found = mean_per_class(right, torch.tensor([3] * 20 + [7] * 2))
    half = 1.959964 * (16 / 22 * 6 / 22 / 20 + 2 / 4 * 2 / 4 / 2) ** 0.5 / 2
    assert found == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert (found.low, found.high) == pytest.approx((found - half, found + half))


def test_a_mean_of_classes_that_are_all_right_is_not_sure_to_stay_so():
    found = mean_per_class(torch.ones(12, dtype=torch.float64), torch.arange(12) // 2)
    assert found == found.high == 1 and 0.5 < found.low < 0.9


def test_the_interval_of_the_mean_per_class_holds_what_it_says():
    sizes, chances = torch.tensor([200, 50, 20]), torch.tensor([0.95, 0.8, 0.6])
    labels = torch.arange(3).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(1000):
        right = torch.rand(len(labels), generator=generator) < chances[labels]
        found = mean_per_class(right.double(), labels)
        held += found.low <= chances.mean() <= found.high
    assert 930 <= held <= 980


def test_top_five_needs_more_than_five_classes(tmp_path):
    # Of the six colours blue is the farthest from yellow.
    shard = write_benchmark(tmp_path, [labelled("yellow", label=2), labelled("yellow", label=0)])
    measures = measure(shards=[shard])
    assert measures["accuracy"] == 0 and measures["top_5"] == 1 / 2
    five = list(COLOURS)[:5]
    assert "top_5" not in measure(shards=[shard], classes=five)


def test_several_shards_are_read_in_order_up_to_the_limit(tmp_path):
    write_benchmark(tmp_path, [labelled("red")] * 3)
    write_shard(tmp_path / "test" / "1.tar", [labelled("blue", label=0)] * 3)
    both = str(tmp_path / "test" / "{0..1}.tar")
    assert measure(shards=both)["accuracy"] == 1 / 2
    limited = measure(shards=both, limit=4)
    assert limited["samples"] == 4 and limited["accuracy"] == 3 / 4


def test_what_is_not_a_labelled_picture_is_skipped_and_counted(tmp_path):
    broken = {"png": b"no picture", "cls": b"0"}
    samples = [labelled("red"), broken, {"cls": b"1"}, {"png": png((1, 2, 3))}]
    measures = measure(shards=write_benchmark(tmp_path, samples))
    assert measures["samples"] == 1 and measures["skipped"] == 3 and measures["accuracy"] == 1


def test_the_classes_and_templates_can_be_given_or_named(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [labelled("green", label=1), labelled("red", label=1)])
    (tmp_path / "my_classes.txt").write_text("red\ngreen\n")
    for classes in (["red", "green"], str(tmp_path / "my_classes.txt")):
        measures = measure(shards=shard, classes=classes, templates=["{}", "a {c}"])
        assert measures["accuracy"] == 1 / 2


def test_the_classifier_is_open_clips(tmp_path):
    """Against open_clip's own build_zero_shot_classifier, on a real text tower."""
    torch.manual_seed(0)
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)

    class Tower:
        def encode_text(self, texts):
            with torch.no_grad():
                return model.encode_text(tokenizer(texts))

    classes, templates = list(COLOURS), ["a {c} thing", "the {c} one"]
    theirs = open_clip.build_zero_shot_classifier(
        model, tokenizer, classes, [lambda c, t=t: fill(t, c) for t in templates]
    )
    torch.testing.assert_close(class_embeddings(Tower(), classes, templates), theirs.T)


def test_imagenet_comes_with_open_clip(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [{"png": png((9, 9, 9)), "cls": b"999"}])
    names = ZeroShot(ZeroShot.Options(shards=shard, classes="imagenet", templates="imagenet"), 0)
    assert len(names._classes) == 1000 and len(names._templates) == 80
    assert fill(names._templates[0], "cat") == "a bad photo of a cat."


def test_a_damaged_shard_gives_what_stands_before_the_damage(tmp_path):
    shard = Path(write_benchmark(tmp_path, [labelled("red")] * 8))
    with tarfile.open(shard) as tar:
        sixth = tar.getmembers()[2 * 5].offset_data
    shard.write_bytes(shard.read_bytes()[:sixth])
    with pytest.warns(UserWarning, match="0.tar"):
        evaluation = ZeroShot(ZeroShot.Options(shards=str(shard)), seed=0)
    measures = dict(evaluation.run(Eye(), Eye()))
    assert measures["samples"] == 5


def test_only_the_asked_pictures_are_read(tmp_path):
    shard = write_benchmark(tmp_path, [labelled("red")] * 8)
    evaluation = ZeroShot(ZeroShot.Options(shards=shard, limit=3), seed=0)
    eye = Eye()
    dict(evaluation.run(eye, eye))
    assert eye.num_read == 3


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([labelled("red", label=6)], "0.tar has a picture of class 6, but there are 6 classes"),
        ([labelled("red", label=-1)], "0.tar has a picture of class -1"),
        ([labelled("red", label="red")], "0.tar has a `cls` that is no whole number: b'red'"),
        ([labelled("red", label="9" * 500)], "0.tar has a `cls` that is no whole number: b'999"),
        ([labelled("red", label=10**9)], "0.tar has a picture of class 1000000000, but"),
        ([{"txt": b"a red thing"}], "no sample has both a picture"),
    ],
)
def test_wrong_labels_are_refused_before_any_model_runs(tmp_path, samples, message):
    shard = write_benchmark(tmp_path, samples)
    with pytest.raises(ValueError) as error:
        ZeroShot(ZeroShot.Options(shards=shard), seed=0)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shards": "nowhere/0.tar"}, FileNotFoundError, "nowhere/0.tar is not there"),
        ({"shards": "s3://bucket/0.tar"}, ValueError, "zero_shot reads local shards; copy s3://"),
        ({"classes": None}, FileNotFoundError, "no classnames.txt beside"),
        ({"classes": ["red"]}, ValueError, "needs two classes; 1 given"),
        ({"templates": None}, FileNotFoundError, "no zeroshot_classification_templates.txt"),
        ({"templates": ["a thing"]}, ValueError, "'a thing' has no {c} for the class"),
        ({"templates": []}, ValueError, "no templates"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, error, message):
    shard = write_shard(tmp_path / "0.tar", [labelled("red")])
    given = {"shards": shard, "classes": ["red", "blue"], "templates": ["a {c}"], **options}
    with pytest.raises(error) as caught:
        ZeroShot(ZeroShot.Options(**given), seed=0)
    assert message in str(caught.value)


def test_captions_alone_are_refused(tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a red thing\n")
    with pytest.raises(ValueError, match="zero_shot reads tars; .*captions.txt is none"):
        ZeroShot(ZeroShot.Options(shards=str(captions), classes=["a", "b"], templates=["{c}"]), 0)


def test_classes_that_are_not_utf_8_are_refused_naming_the_file(tmp_path):
    shard = write_benchmark(tmp_path, [labelled("red")], classes=["red", "blue"])
    (tmp_path / "classnames.txt").write_bytes("blå".encode("latin-1"))
    with pytest.raises(ValueError, match="classnames.txt is not UTF-8; save it as UTF-8"):
        ZeroShot(ZeroShot.Options(shards=shard), seed=0)


def test_an_empty_line_among_the_classes_is_refused(tmp_path):
    shard = write_benchmark(tmp_path, [labelled("red")], classes=["red", "", "blue"])
    with pytest.raises(ValueError, match="classnames.txt line 2 is empty"):
        ZeroShot(ZeroShot.Options(shards=shard), seed=0)


def test_no_shards_are_refused():
    with pytest.raises(ValidationError, match="at least 1 item"):
        ZeroShot.Options(shards=[])


def test_a_model_that_diverged_is_an_error(tmp_path):
    shard = write_benchmark(tmp_path, [labelled("red")])
    evaluation = ZeroShot(ZeroShot.Options(shards=shard), seed=0)

    class Lost(Eye):
        def encode_image(self, pictures):
            return super().encode_image(pictures) * np.nan

    with pytest.raises(ValueError, match="no picture of .* gave a finite embedding"):
        dict(evaluation.run(Lost(), Eye()))

    class Dumb(Eye):
        def encode_text(self, texts):
            return super().encode_text(texts) * np.nan

    with pytest.raises(FloatingPointError, match="text embeddings are not finite"):
        dict(evaluation.run(Dumb(), Eye()))


@pytest.mark.parametrize("counts", [[100] * 6, [200, 200, 50, 50, 50, 50]])
def test_a_model_that_knows_nothing_is_right_by_chance(tmp_path, counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    samples = [
        {"png": png((i % 256, i // 256, 0)), "cls": str(label).encode()}
        for i, label in enumerate(labels)  # no two pictures are the same
    ]
    evaluation = ZeroShot(ZeroShot.Options(shards=write_benchmark(tmp_path, samples)), seed=0)
    model = RandomModel()
    measures = dict(evaluation.run(model, model))
    assert measures["samples"] == 600
    for name, chance in (("accuracy", 1 / 6), ("top_5", 5 / 6), ("mean_per_class", 1 / 6)):
        assert measures[name].low <= chance <= measures[name].high, name
        assert measures[name].high - measures[name].low < 0.1, name  # or it could not fail


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_student_that_lost_pictures_which_the_teacher_sees_is_an_error(tmp_path, value):
    broken = {"png": b"no picture", "cls": b"0"}
    shard = write_benchmark(tmp_path, [labelled("red"), broken, labelled("blue")])
    evaluation = ZeroShot(ZeroShot.Options(shards=shard), seed=0)
    assert dict(evaluation.run(Eye(), Eye()))["skipped"] == 1

    class Overflown(Eye):
        def encode_image(self, pictures):
            rows = super().encode_image(pictures)
            rows[2] *= value
            return rows

    with pytest.raises(FloatingPointError, match="image embeddings of pictures are not finite"):
        dict(evaluation.run(Overflown(), Eye()))
