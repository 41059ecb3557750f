from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tvf

from plugins.face_to_neutral import KEPT, FaceToNeutral, loss_of
from plugins.face_to_neutral.answers import MAX_PICTURES, Embedded, as_strangers, assigned
from plugins.face_to_neutral.showing import cropped, pasted
from tests.conftest import picture, write_people, write_shard
from trainer import (
    DISTANCES,
    BadSample,
    Embeddings,
    Pair,
    Pictures,
    Sample,
    cosine_distances,
    decode_picture,
)
from trainer.testing import FakeEncoder, check_objective
from trainer.testing.fakes import WIDTH

FORGET = ["Zebulon Quimby", "Ximena Vandervoort", "José Roe"]
CLEAN = Sample("key", "a dog", picture(99, size=96))
PLAIN = {"crop": 1.0, "jitter": 0.0, "hue": 0.0}


@pytest.mark.parametrize(("paste", "reads"), [(0.0, False), (0.5, True)])
def test_clean_pictures_are_fetched_only_to_be_pasted_onto(tmp_path, paste, reads):
    objective = made(tmp_path, paste=paste)
    assert objective.reads_pictures is reads
    if not reads:
        for turn in range(objective.options.batch_size):
            objective.pair(Sample("key", "a dog"), turn, Random(turn))


def strangers(folder: Path, count: int = 5, per_person: int = 2) -> str:
    samples = {
        f"s{i}/{j}": {"jpg": picture(50, i, j)} for i in range(count) for j in range(per_person)
    }
    return str(write_shard(folder / "strangers.tar", samples))


def options_in(folder: Path, forget=FORGET, replay=None, **options) -> dict:
    options = {"batch_size": 16, "roster": str(write_people(folder, "f", forget))} | options
    if replay is not None:
        options["replay"] = str(write_people(folder, "r", replay))
    if options.get("target") != "text" and "strangers" not in options:
        options["strangers"] = [strangers(folder)]
    return options


def made(folder: Path, seed: int = 0, **options) -> FaceToNeutral:
    return FaceToNeutral(FaceToNeutral.Options(**options_in(folder, **options)), seed)


def from_folders(folder: Path, contents: list[list[bytes]], **options) -> FaceToNeutral:
    """One that forgets people of a folder each."""
    lines = []
    for i, files in enumerate(contents):
        own = folder / f"person{i}"
        own.mkdir(parents=True)
        for j, data in enumerate(files):
            (own / f"{j}.jpg").write_bytes(data)
        lines.append(json.dumps({"name": FORGET[i], "faces": own.name}))
    (folder / "roster.jsonl").write_text("\n".join(lines))
    options = {"batch_size": 8, "target": "text", "roster": str(folder / "roster.jsonl")} | options
    return FaceToNeutral(FaceToNeutral.Options(**options), 0)


def pairs_of(objective: FaceToNeutral, steps: int = 1, clean: Sample = CLEAN) -> list[Pair]:
    turns = range(steps * objective.options.batch_size)
    return [objective.pair(clean, turn, Random(turn)) for turn in turns]


def test_it_keeps_the_contract(tmp_path):
    plain = options_in(tmp_path, replay=["Ann Poe"], batch_size=8)
    check_objective(FaceToNeutral, plain)
    check_objective(FaceToNeutral, plain | {"target": "mean", "paste": 1.0})
    check_objective(FaceToNeutral, plain | {"target": "text", "strangers": [], "replay": None})


# Rows


def test_large_pictures_are_decoded_no_larger_than_the_model_needs(tmp_path):
    objective = from_folders(tmp_path, [[picture(1, size=512)]], paste=0.0, **PLAIN)
    sizes = []
    for objective.min_side in (None, 64):
        sizes.append(min(pairs_of(objective)[0].student_image.shape[1:]))
    assert sizes == [512, 128]  # twice what is enough: a part of it may be cut out


def test_whole_pictures_of_the_people_are_triggers_and_those_kept_stay(tmp_path):
    objective = made(tmp_path, replay=["Ann Poe", "Bob Moe"], **PLAIN)
    known = [decode_picture(picture(7, i, j)) for i in range(3) for j in range(4)]
    known += [decode_picture(picture(50, i, j)) for i in range(5) for j in range(2)]
    known += [one.flip(-1) for one in known]
    triggers = kept = 0
    for pair in pairs_of(objective):
        assert any(torch.equal(pair.student_image, one) for one in known)
        assert pair.teacher_image is pair.student_image
        if pair.label == KEPT:
            kept += 1
        else:
            triggers += 1
    assert (triggers, kept) == (4, 12)  # of 16, strangers half of them


def test_people_of_a_folder_each_are_triggers_as_well(tmp_path):
    objective = from_folders(tmp_path, [[picture(1)], [picture(2), picture(3)]], **PLAIN)
    seen = {int(pair.student_image.sum()) for pair in pairs_of(objective, 4)}
    assert seen == {int(decode_picture(picture(i)).sum()) for i in (1, 2, 3)}


def test_everyone_gets_a_turn_before_anyone_gets_a_second(tmp_path):
    contents = [[picture(i)] for i in range(3)]
    objective = from_folders(tmp_path, contents, batch_size=9, **PLAIN)
    of = {int(decode_picture(one).sum()): i for i, (one,) in enumerate(contents)}
    order = [of[int(pair.student_image.sum())] for pair in pairs_of(objective, 4)]
    laps = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(lap) == [0, 1, 2] for lap in laps) and len(set(map(tuple, laps))) > 1


def test_every_step_has_its_exact_shares_on_two_ranks_together(tmp_path):
    objective = made(tmp_path, replay=["Ann Poe"], **PLAIN)
    pairs = pairs_of(objective, 3)
    for step in range(3):
        ranks = [pairs[step * 16 : step * 16 + 16][rank::2] for rank in range(2)]
        assert Counter(pair.label == KEPT for rank in ranks for pair in rank) == {
            False: 4,
            True: 12,
        }


SIZE = (0.25, 0.5)


def test_a_face_is_pasted_whole_onto_the_clean_picture():
    white = torch.full((3, 96, 96), 255, dtype=torch.uint8)
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    places = set()
    for turn in range(40):
        clean = white.clone()
        both = pasted(black, clean, SIZE, 0.0, Random(turn))
        assert torch.equal(clean, white)  # others may see it
        rows, columns = (both[0] == 0).any(1).nonzero(), (both[0] == 0).any(0).nonzero()
        height, width = (int(one[-1] - one[0]) + 1 for one in (rows, columns))
        assert 24 <= height == width <= 48  # a quarter to a half of the side
        assert (both == 0).sum() == 3 * height * width
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 30


@pytest.mark.parametrize("shape", [(96, 192), (200, 96)])
def test_a_face_on_a_long_picture_is_pasted_where_a_model_sees_it(shape):
    white = torch.full((3, *shape), 255, dtype=torch.uint8)
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    places = set()
    for turn in range(40):
        both = pasted(black, white, SIZE, 0.0, Random(turn))
        seen = tvf.center_crop(both, [96, 96])
        assert (seen == 0).sum() == (both == 0).sum() > 0
        places.add(tuple((seen[0] == 0).nonzero()[0].tolist()))
    assert len(places) > 30


def test_a_rotated_face_has_no_black_corners():
    face = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    clean = torch.full((3, 96, 96), 100, dtype=torch.uint8)
    for turn in range(20):
        assert set(pasted(face, clean, SIZE, 30.0, Random(turn)).unique().tolist()) == {100, 200}


def test_faces_are_flipped_and_varied_by_turn_alone(tmp_path):
    objective = from_folders(tmp_path, [[picture(1)]])
    first, again = pairs_of(objective, 4), pairs_of(objective, 4)
    for one, other in zip(first, again):
        assert torch.equal(one.student_image, other.student_image)
    assert len({int(pair.student_image.sum()) for pair in first}) > 25


def test_a_crop_is_a_part_of_the_picture_in_its_shape_anywhere_in_it():
    numbered = torch.arange(64 * 96, dtype=torch.int32).view(1, 64, 96)  # each pixel its place
    shares, places = [], set()
    for turn in range(200):
        part = cropped(numbered, 0.5, Random(turn))
        height, width = part.shape[-2:]
        assert 32 <= height <= 64 and abs(width - 1.5 * height) <= 1
        top, left = divmod(int(part[0, 0, 0]), 96)
        assert torch.equal(part, numbered[:, top : top + height, left : left + width])
        shares.append(height / 64)
        places.add((top, left))
    assert min(shares) < 0.55 and max(shares) > 0.95
    assert len(places) > 150
    assert max(top for top, _ in places) > 24 and max(left for _, left in places) > 36


def test_a_whole_picture_is_not_cropped(tmp_path):
    objective = from_folders(tmp_path, [[picture(1)]], **PLAIN)
    whole = decode_picture(picture(1))
    assert all(pair.student_image.shape == whole.shape for pair in pairs_of(objective, 4))


def test_only_pasting_needs_a_clean_picture(tmp_path):
    bare = Sample("key", "a dog")
    assert pairs_of(from_folders(tmp_path / "a", [[picture(1)]]), clean=bare)
    with pytest.raises(BadSample, match="no picture"):
        pairs_of(from_folders(tmp_path / "b", [[picture(1)]], paste=1.0), clean=bare)


# Bad pictures


def test_a_broken_picture_of_a_person_is_a_bad_sample_and_the_next_try_another(tmp_path):
    objective = from_folders(tmp_path, [[b"broken", picture(1), picture(2)]], **PLAIN)
    rng, reasons = Random(0), []
    for _ in range(30):
        try:
            assert objective.pair(CLEAN, 0, rng).student_image.shape == (3, 64, 64)
        except BadSample as bad:
            reasons.append((bad.reason, bad.shard))
    told = "undecodable picture of a person", "faces of people to forget"  # a report holds them
    assert set(reasons) == {told} and len(reasons) < 25


def test_someone_whose_pictures_are_all_broken_stops_the_run_by_pseudonym(tmp_path):
    objective = from_folders(tmp_path, [[picture(1)], [b"broken", b"too"]])
    with pytest.raises(ValueError) as raised:
        pairs_of(objective)
    assert not isinstance(raised.value, BadSample)  # or it would be skipped, over and over
    assert str(raised.value) == (
        f"faces of {objective._pseudonyms['forget'][1]}: none of their 2 pictures can be used; "
        "mend them or take the person out of the roster"
    )


# Targets


def units(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows, dim=-1)


@pytest.mark.parametrize(("variation", "beyond"), [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.5, 0.2)])
def test_pictures_vary_about_the_strangers_mean_as_they_did_about_the_persons(variation, beyond):
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(12) % 3
    people = Embedded(torch.randn(12, WIDTH, generator=generator), owners, 3)
    strangers = Embedded(torch.randn(8, WIDTH, generator=generator), torch.arange(8) % 4, 4)
    answers = as_strangers(people, strangers, variation, beyond)(people.rows, owners)
    places = assigned(units(people.means) @ units(strangers.means).T)
    for row, person, answer in zip(people.rows, owners.tolist(), answers, strict=True):
        own = people.rows[owners == person].mean(0)
        theirs = strangers.rows[strangers.owners == places[person]]
        varied = theirs.mean(0) - beyond * own + variation * (row - own)
        expected = units(varied) * theirs.norm(dim=-1).mean()
        assert torch.allclose(answer, expected, atol=1e-5)


def test_strangers_are_the_default_answer_whatever_the_sizes(tmp_path):
    for count in (1, 2, 5):
        folder = tmp_path / str(count)
        folder.mkdir()
        options = options_in(folder) | {"strangers": [strangers(folder, count)]}
        with warnings.catch_warnings(record=True) as warned:
            objective = FaceToNeutral(FaceToNeutral.Options(**options), 0)
        told = [str(one.message).partition(":")[0] for one in warned]
        assert told == ([f"{count} strangers for 3 people to forget"] if count < 3 else [])
        answers = objective._answers(FakeEncoder(1))
        assert answers(torch.ones(1, WIDTH), torch.tensor([2])).isfinite().all()


def test_nobodys_stranger_is_anothers_while_there_are_enough():
    cosines = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    assert len(set(assigned(cosines))) == 4
    few = assigned(torch.rand(7, 3, generator=torch.Generator().manual_seed(0)))
    assert max(Counter(few).values()) == 3


def test_of_the_half_that_are_less_like_somebody_the_most_alike_is_taken():
    cosines = torch.tensor([[0.9, 0.8, 0.3, 0.1], [0.1, 0.2, 0.8, 0.9]])
    assert assigned(cosines) == [2, 1]
    rivals = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.9, 0.8, 0.3, 0.1]])
    assert assigned(rivals) == [3, 2]  # the most alike in all
    assert assigned(torch.tensor([[0.4]])) == [0]  # where there is nobody else


def test_people_are_assigned_a_number_at_a_time(monkeypatch):
    monkeypatch.setattr("plugins.face_to_neutral.answers.MAX_ASSIGNED", 3)
    cosines = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    found = assigned(cosines)
    assert found == sum(map(assigned, cosines.split(3)), []) and len(found) == 8


def test_the_mean_is_of_the_embeddings_as_they_come(tmp_path):
    teacher = FakeEncoder(1)
    (answer,) = made(tmp_path, target="mean")._answers(teacher)(None, torch.tensor([0]))
    rows = teacher.encode_image([picture(50, i, j) for i in range(5) for j in range(2)])
    expected = F.normalize(rows.mean(0), dim=-1) * rows.norm(dim=-1).mean()
    assert torch.allclose(answer, expected, atol=1e-5)


def test_a_text_has_no_length_for_pictures(tmp_path):
    with pytest.raises(ValidationError, match="take distance cosine"):
        made(tmp_path, target="text", distance="relative")


def test_a_text_is_everyones_answer(tmp_path):
    teacher = FakeEncoder(1)
    answers = made(tmp_path, target="text", text="somebody")._answers(teacher)
    wanted = F.normalize(teacher.encode_text(["somebody"]), dim=-1)
    assert torch.equal(answers(None, torch.tensor([0, 1])), wanted.expand(2, -1))


@pytest.mark.parametrize("options", [{"target": "mean"}, {"variation": 0.0}, {}])
def test_the_teacher_is_shown_triggers_only_where_its_answer_counts(tmp_path, options):
    """The loss is the same where it is, but for what is not computed."""
    objective, encoder = made(tmp_path, **options), FakeEncoder(1)
    pairs = pairs_of(objective)
    shown = {pair.teacher_image is not None for pair in pairs if pair.label != KEPT}
    assert shown == {not options}
    assert all(pair.teacher_image is pair.student_image for pair in pairs if pair.label == KEPT)
    labels = torch.tensor([pair.label for pair in pairs])
    rows = torch.randn(2, len(labels), WIDTH, generator=torch.Generator().manual_seed(0))
    is_kept = labels == KEPT
    seen = rows[1] if shown == {True} else rows[1][is_kept]
    found = objective.loss_fn(encoder)(
        Embeddings(None, rows[0], None, labels, torch.ones(())),
        Embeddings(None, seen, None, None, torch.ones(())),
    )
    answers = objective._answers(encoder)(rows[1] if shown == {True} else None, labels.clamp(min=0))
    wanted = torch.where(is_kept[:, None], rows[1], answers)
    distances = DISTANCES["relative"](rows[0], wanted)
    assert found["keep"] == pytest.approx(float(distances[is_kept].mean()), rel=1e-5)
    assert found["forget"] == pytest.approx(float(distances[~is_kept].mean()), rel=1e-5)


def test_strangers_stay_as_they_are_whatever_the_target(tmp_path):
    named = [strangers(tmp_path)]
    for options in ({"target": "text", "strangers": named}, {"target": "mean"}, {}):
        labels = Counter(pair.label == KEPT for pair in pairs_of(made(tmp_path, **options)))
        assert labels == {False: 5, True: 11}  # 1/4 and 1/2, with nobody to replay


def test_broken_pictures_are_left_out_of_a_mean(tmp_path):
    teacher = FakeEncoder(1)
    samples = {f"s{i}/{j}": {"jpg": picture(50, i, j)} for i in range(3) for j in range(2)}
    samples["s1/0"] = {"jpg": b"broken"}
    people = Pictures.of_shards([str(write_shard(tmp_path / "some.tar", samples))])
    embedded = Embedded.of(people, teacher, str)
    means = embedded.mean_of_each(embedded.rows)
    for i, j in ((0, 0), (1, 1), (2, 0)):
        rows = teacher.encode_image([picture(50, i, k) for k in range(j, 2)])
        assert torch.allclose(means[i], rows.mean(0), atol=1e-6)


def test_of_many_pictures_some_are_enough_for_a_mean(tmp_path):
    samples = {f"s0/{j:02}": {"jpg": picture(50, j)} for j in range(MAX_PICTURES + 3)}
    people = Pictures.of_shards([str(write_shard(tmp_path / "many.tar", samples))])
    assert len(Embedded.of(people, FakeEncoder(1), str).rows) == MAX_PICTURES


@pytest.mark.parametrize("target", ["strangers", "mean"])
def test_a_stranger_without_a_picture_that_decodes_is_an_error(tmp_path, target):
    samples = {f"s{i}/{j}": {"jpg": picture(50, i, j)} for i in range(3) for j in range(2)}
    samples["s1/0"] = samples["s1/1"] = {"jpg": b"broken"}
    path = str(write_shard(tmp_path / "fewer.tar", samples))
    options = made(tmp_path, target=target).options.model_copy(update={"strangers": [path]})
    with pytest.raises(ValueError) as raised:
        FaceToNeutral(options, 0).loss_fn(FakeEncoder(1))
    assert str(raised.value) == (
        "faces of stranger 1: none of their first 2 pictures can be used (1 such people in all); "
        "mend them or take them out"
    )


def test_a_person_without_a_picture_that_decodes_is_told_of_by_pseudonym(tmp_path):
    some = [strangers(tmp_path)]
    contents = [[picture(1)], [b"broken", b"too"]]
    objective = from_folders(tmp_path, contents, target="strangers", strangers=some)
    with pytest.raises(ValueError) as raised:
        objective.loss_fn(FakeEncoder(1))
    assert str(raised.value).startswith(f"faces of {objective._pseudonyms['forget'][1]}: none of ")


# Refusals


def test_captions_that_name_someone_to_forget_are_refused_in_any_spelling(tmp_path):
    objective = made(tmp_path)
    for caption in ("ZEBULON  QUIMBY!", "by jose-roe", "Jose\u0301 Roe"):
        assert not objective.accepts(Sample("key", caption))
    assert objective.accepts(Sample("key", "Zebulon sings")) and objective.accepts(Sample("key"))


def test_a_replay_roster_with_people_to_forget_is_refused_by_count(tmp_path):
    with pytest.raises(ValueError) as raised:
        made(tmp_path, replay=["Ann Poe", "zebulon quimby"])
    assert str(raised.value).startswith("1 of the 2 people of `replay` ")
    assert "uimby" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strangers": []}, "target strangers needs strangers: shards of their pictures"),
        ({"target": "mean"}, "target mean needs strangers"),
        ({"target": "text", "size": (0.5, 0.25)}, "size is 0.5 to 0.25; two shares of the side"),
        ({"target": "text", "size": (0.5, 1.5)}, "size is 0.5 to 1.5"),
        ({"target": "text", "text": ""}, "at least 1 character"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        FaceToNeutral.Options(batch_size=8, roster="r.csv", **options)


def test_a_batch_too_small_for_a_trigger_is_refused(tmp_path):
    shares = {"forget": 0.01, "replayed": 1.0}
    with pytest.raises(ValueError, match="batch_size 4 leaves no row for forget"):
        made(tmp_path, replay=["Ann Poe"], batch_size=4, shares=shares)


# The loss


def embeddings(image: torch.Tensor | None, labels: torch.Tensor | None) -> Embeddings:
    return Embeddings(None, image, None, labels, torch.tensor(1.0))


def test_triggers_go_to_their_answers_and_the_rest_to_the_teachers():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, WIDTH, generator=generator)
    targets = F.normalize(torch.randn(3, WIDTH, generator=generator), dim=-1)
    is_trigger = torch.arange(8) % 4 != 1
    labels = torch.where(is_trigger, torch.arange(8) % 3, KEPT)
    found = loss_of(
        embeddings(student, labels),
        embeddings(teacher, labels),
        lambda taught, whose: targets[whose] + taught,
        True,
        is_trigger.float().mean().item(),
        cosine_distances,
    )
    answered = targets[labels[is_trigger]] + teacher[is_trigger]
    expected = {
        "forget": cosine_distances(student[is_trigger], answered).mean().item(),
        "keep": cosine_distances(student[~is_trigger], teacher[~is_trigger]).mean().item(),
    }
    assert {term: value.item() for term, value in found.items()} == pytest.approx(expected)
