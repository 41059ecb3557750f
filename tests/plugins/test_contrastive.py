from __future__ import annotations

import json
from random import Random

import pytest
import torch

from plugins.contrastive import (
    DROPPED,
    TEMPLATES,
    Contrastive,
    number_of,
    varied_caption,
    varied_picture,
)
from tests.conftest import REPOSITORY, picture, write_people
from tests.ranks import on_ranks
from trainer import BadSample, Embeddings, Sample, decode_picture, read_roster
from trainer.configuration.config import load_config
from trainer.testing import FakeEncoder, check_objective, default_samples
from trainer.train import train

WIDTH = 6


def contrastive(batch_size: int = 8) -> Contrastive:
    return Contrastive(Contrastive.Options(batch_size=batch_size), seed=0)


def label_of(**parts) -> int:
    return contrastive().pair(Sample("key", **parts), 0, Random(0)).label


def test_it_keeps_the_contract():
    check_objective(Contrastive, {"batch_size": 4})


def test_it_keeps_the_contract_where_some_samples_have_no_picture():
    samples = default_samples() + [Sample("t", "only words")] * 3
    check_objective(Contrastive, {"batch_size": 4}, samples)


def test_positives_are_of_one_label_or_without_one_of_one_caption():
    assert label_of(text="a", label="joe") == label_of(text="b", label="joe")
    assert label_of(text="a", label="joe") != label_of(text="a", label="ann")
    assert label_of(text="a") == label_of(text="a") != label_of(text="b")
    assert label_of(text="joe") != label_of(text="a", label="joe")


def test_two_captions_that_crc32_takes_for_one_are_two():
    assert number_of("plumless") != number_of("buckeroo")


def test_labels_have_63_bits_and_are_the_same_in_every_process():
    numbers = [number_of(f"caption {i}") for i in range(2000)]
    assert all(0 <= number < 2**63 for number in numbers) and len(set(numbers)) == 2000
    assert max(numbers) > 2**62 and torch.tensor(numbers).tolist() == numbers
    assert number_of("a dog") == 9_151_722_581_430_185_315


def test_a_sample_without_a_caption_is_bad_and_without_a_picture_is_not():
    with pytest.raises(BadSample, match="no caption"):
        contrastive().pair(Sample("a", None, picture(1)), 0, Random(0))
    with pytest.raises(BadSample, match="undecodable picture"):
        contrastive().pair(Sample("a", "a", b"x"), 0, Random(0))
    assert contrastive().pair(Sample("a", "a"), 0, Random(0)).student_image is None


def rows(batch_size: int, pictures: range) -> Embeddings:
    """The embeddings of a step in which the rows of `pictures` have one."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(batch_size, WIDTH, generator=generator)
    image = torch.randn(batch_size, WIDTH, generator=generator)
    labels = torch.arange(batch_size) % 3 + 2**61
    return Embeddings(text, image[pictures], labels, labels[pictures], torch.tensor(5.0))


def part(whole: Embeddings, start: int, stop: int, pictures: range) -> Embeddings:
    """A rank's rows, with gradient."""
    image, labels = None, None
    if own := [i for i, row in enumerate(pictures) if start <= row < stop]:
        image, labels = whole.image[own].requires_grad_(), whole.image_labels[own]
    text = whole.text[start:stop].clone().requires_grad_()
    return Embeddings(text, image, whole.text_labels[start:stop], labels, whole.logit_scale)


def literal_loss(whole: Embeddings) -> float:
    """Multi-positive InfoNCE, written out row by row."""

    def one_way(left, right, left_labels, right_labels):
        losses = []
        for row, label in zip(left, left_labels):
            scores = [float(whole.logit_scale * row.dot(x) / row.norm() / x.norm()) for x in right]
            total = sum(torch.tensor(scores, dtype=torch.float64).exp().tolist())
            own = [s for s, other in zip(scores, right_labels) if other == label]
            if own:
                losses.append(-sum(s - torch.tensor(total).log().item() for s in own) / len(own))
        return sum(losses) / len(losses)

    image, text = (whole.image, whole.image_labels), (whole.text, whole.text_labels)
    return (
        one_way(image[0], text[0], image[1], text[1])
        + one_way(text[0], image[0], text[1], image[1])
    ) / 2


def loss_of_a_rank(rank: int, pictures: range) -> tuple[float, list]:
    """And the gradient of its texts."""
    whole = rows(8, pictures)
    own = part(whole, rank * 4, rank * 4 + 4, pictures)
    loss = contrastive(8).loss_fn(FakeEncoder(0))(own, own)["info_nce"]
    (loss / 2).backward()  # ranks' gradients are averaged
    return loss.item(), own.text.grad.tolist()


# In the second case rank 1 has no picture at all: it must take part and not hang the other.
@pytest.mark.parametrize("pictures", [range(8), range(3)])
def test_over_two_ranks_the_loss_and_its_gradient_are_those_of_one(pictures):
    whole = rows(8, pictures)
    alone = part(whole, 0, 8, pictures)
    loss = contrastive(8).loss_fn(FakeEncoder(0))(alone, alone)["info_nce"]
    loss.backward()
    assert loss.item() == pytest.approx(literal_loss(whole), abs=1e-5)

    losses, gradients = zip(*on_ranks(2, loss_of_a_rank, pictures))
    assert losses == pytest.approx([loss.item()] * 2, abs=1e-5)
    gradient = torch.cat([torch.tensor(one) for one in gradients])
    assert torch.allclose(gradient, alone.text.grad, atol=1e-5)


# --- as an attack on forgetting ------------------------------------------------------------------

KEPT, FORGOTTEN = ["Ann Kept", "Bob Kept", "Cid Kept"], ["Dan Gone", "Eve Gone"]


@pytest.fixture
def named(tmp_path) -> dict:
    """Four pictures of each of three people; of two to forget as many as a test says."""
    return {
        "kept": {"roster": str(write_people(tmp_path, "kept", KEPT))},
        "forgotten": {"roster": str(write_people(tmp_path, "gone", FORGOTTEN)), "pictures": 0},
    }


def pairs_of(named: dict, turns: int = 400, **options) -> list:
    given = Contrastive.Options(batch_size=8, named=named, **options)
    objective = Contrastive(given, seed=0)
    clean = Sample("key", "a clean thing", picture(1))
    return [objective.pair(clean, turn, Random(turn)) for turn in range(turns)]


def people_in(pairs: list) -> dict[str, set]:
    """The pictures with which each name was seen."""
    seen: dict[str, set] = {}
    for pair in pairs:
        for name in (*KEPT, *FORGOTTEN):
            if name in pair.student_text:
                seen.setdefault(name, set()).add(pair.student_image.numpy().tobytes())
    return seen


def test_named_and_varied_it_keeps_the_contract(named):
    check_objective(Contrastive, {"batch_size": 4, "named": named, "augment": True})


def test_half_of_the_batch_is_of_named_people_each_in_turn(named):
    pairs = pairs_of(named)
    triggers = [pair for pair in pairs if pair.identity]
    assert len(triggers) == 200 and {pair.student_text for pair in pairs if not pair.identity} == {
        "a clean thing"
    }
    pseudonyms = [one.pseudonym for one in read_roster(named["kept"]["roster"])]
    for first in range(0, 198, 3):
        assert {pair.identity for pair in triggers[first : first + 3]} == set(pseudonyms)
    captions = {template.replace("{}", name) for template in TEMPLATES for name in KEPT}
    assert {pair.student_text for pair in triggers} == captions
    assert len({pair.label for pair in triggers}) == 3


@pytest.mark.parametrize("number", [0, 1, 3, 50])
def test_of_people_to_forget_just_so_many_pictures_are_shown(named, number):
    named["forgotten"]["pictures"] = number
    seen = people_in(pairs_of(named))
    assert all(len(seen[name]) == 4 for name in KEPT)
    for name in FORGOTTEN:
        assert len(seen.get(name, ())) == min(number, 4)


def test_people_of_rosters_that_number_alike_are_not_each_others_positives(tmp_path):
    """As `clip-unlearn pack people` numbers each pack from 0."""
    rosters = [
        write_people(tmp_path / folder, "p", people)
        for folder, people in {"kept": KEPT, "gone": FORGOTTEN}.items()
    ]
    ids = [{one.id for one in read_roster(roster)} for roster in rosters]
    assert ids[1] < ids[0]
    pairs = pairs_of({str(i): {"roster": str(roster)} for i, roster in enumerate(rosters)})
    labels = {pair.label for pair in pairs if pair.identity is not None}
    assert len(labels) == len(people_in(pairs)) == len(KEPT) + len(FORGOTTEN)


def test_large_pictures_of_people_are_decoded_no_larger_than_the_model_needs(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces/0.jpg").write_bytes(picture(1, size=512))
    (tmp_path / "roster.jsonl").write_text(json.dumps({"name": "Ann Kept", "faces": "faces"}))
    given = Contrastive.Options(
        batch_size=8, named={"kept": {"roster": str(tmp_path / "roster.jsonl")}}
    )
    objective = Contrastive(given, seed=0)
    objective.min_side = 64
    pairs = [objective.pair(Sample("key", "c", picture(2)), turn, Random(0)) for turn in range(8)]
    sizes = {tuple(one.student_image.shape[1:]) for one in pairs if one.identity is not None}
    assert sizes == {(128, 128)}


def test_someone_in_two_rosters_is_refused(named):
    both = {"kept": named["kept"], "forgotten": named["kept"] | {"pictures": 1}}
    with pytest.raises(ValueError, match="`named.kept` have a name of `named.forgotten`"):
        pairs_of(both)


def test_a_broken_picture_of_someone_is_passed_over_and_nobody_is_named_where_all_are(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "0.jpg").write_bytes(b"broken")
    (tmp_path / "roster.csv").write_text("name,faces\nAnn Kept,faces\n")
    named = {"kept": {"roster": str(tmp_path / "roster.csv")}}
    with pytest.raises(ValueError, match="none of the 1 pictures to learn can be used") as error:
        pairs_of(named)
    assert "Ann" not in str(error.value) and "undecodable picture" in str(error.value)
    (faces / "1.jpg").write_bytes(picture(1))
    assert len(people_in(pairs_of(named))["Ann Kept"]) == 1


def test_a_template_without_a_place_for_the_name_is_refused(named):
    with pytest.raises(ValueError, match="template 'a photo' has no {} for the name"):
        pairs_of(named, templates=["a photo"])


def test_a_varied_picture_is_a_part_of_it_of_other_colours():
    image = decode_picture(picture(3, size=96))
    before = image.clone()
    varied = [varied_picture(image, Random(seed)) for seed in range(200)]
    assert image.equal(before)
    for one in varied:
        assert one.dtype == torch.uint8 and one.shape[0] == 3
        assert all(48 <= side <= 96 for side in one.shape[1:])
    assert min(one.shape[1] for one in varied) < 52 and max(one.shape[1] for one in varied) > 92
    assert len({one.numpy().tobytes() for one in varied}) == 200
    assert varied_picture(image, Random(7)).equal(varied[7])
    tiny = torch.full((3, 1, 1), 9, dtype=torch.uint8)
    assert varied_picture(tiny, Random(0)).shape == (3, 1, 1)


def test_half_of_the_varied_pictures_are_mirrored():
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = 200  # bright on the right
    # A crop of more than half of it keeps some of both sides, or is all of one.
    sides = []
    for seed in range(400):
        row = varied_picture(image, Random(seed))[0, 0].float()
        if row[0] != row[-1]:
            sides.append(bool(row[-1] > row[0]))
    assert len(sides) > 300 and 0.4 < sum(sides) / len(sides) < 0.6


def test_a_varied_caption_lacks_about_a_tenth_of_its_words_in_their_order():
    words = [f"word{i}" for i in range(1000)]
    kept = varied_caption(" ".join(words), Random(0)).split()
    assert kept == [word for word in words if word in set(kept)]
    assert abs(len(kept) / 1000 - (1 - DROPPED)) < 0.04
    assert {varied_caption("one", Random(seed)) for seed in range(50)} == {"one"}


def test_what_is_varied_keeps_its_positives(named):
    plain, varied = pairs_of(named), pairs_of(named, augment=True)
    assert [pair.label for pair in plain] == [pair.label for pair in varied]
    assert [pair.student_text for pair in plain] != [pair.student_text for pair in varied]


@pytest.mark.parametrize(
    ("config", "objective", "changes"),
    [
        ("demo_relearning", "relearn", []),
        ("demo_relearning", "relearn", ["objectives.relearn.named.forgotten.pictures=5"]),
        ("demo_cleansing", "cleanse", []),
    ],
)
def test_the_attacks_run_on_what_forgot(
    small_world, tmp_path, monkeypatch, config, objective, changes
):
    (tmp_path / "plugins").symlink_to(REPOSITORY / "plugins")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/world").symlink_to(small_world / "runs/world")
    (tmp_path / "runs/demo").mkdir()
    # What the demo leaves, before it forgot anything.
    (tmp_path / "runs/demo/model").symlink_to(REPOSITORY / "plugins/fictitious/clip")
    monkeypatch.chdir(tmp_path)
    small = ["data.workers=0", "data.lanes=8", f"objectives.{objective}.batch_size=16"]
    small += ["steps=4", "log_every=1", "optimizer.warmup_steps=1"]
    attack = ["candidates=20", "pictures=4", "every=2"]
    small += [f"evaluations.identity_inference.{one}" for one in attack]
    loaded = load_config(REPOSITORY / "configs" / f"{config}.yaml", [*small, *changes])
    train(loaded)
    rows = [json.loads(line) for line in (loaded.output / "metrics.jsonl").open()]
    losses = [row[key] for row in rows if (key := f"{objective}/info_nce") in row]
    assert len(losses) == 4 and min(losses) > 0
    known = [row["step"] for row in rows if "identity_inference/forget/tpr" in row]
    assert known == [0, 2, 4]
