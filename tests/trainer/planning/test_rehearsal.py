"""What a rehearsal counts is what a real forward keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.trainer.architectures import KINDS
from tests.trainer.planning.test_flops import batch_of, student
from tests.trainer.test_train import config_path, overrides
from trainer.api import Tower
from trainer.configuration.config import load_config
from trainer.data.batches import Batch, Batches
from trainer.embedding import STUDENT, Showing
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.clip import Towers
from trainer.planning.rehearsal import Gradients, Kind, Rehearsal, Use, rehearse


@pytest.fixture(autouse=True)
def _in_the_world(small_world, monkeypatch):
    monkeypatch.chdir(small_world)


def really_kept(student: Towers, batch: Batch) -> int:
    """Bytes that a forward on real tensors keeps for its backward."""
    own = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        student(batch.tokens[batch.seen_by(2)], batch.pixels[batch.seen_by(3)])
    return sum(storage.nbytes() for storage in kept.values())


def test_the_activations_are_those_that_a_real_forward_keeps():
    config = load_config(config_path("demo"), overrides("demo"))
    clip = clips.load(config.model)
    lean(clip.model)
    student = clips.student_of(clip, frozenset(Tower), config.model, temperature=False)
    batch = next(Batches(config.objectives, config.data, clip, 0, 0, 1))
    assert really_kept(student, batch) == pytest.approx(
        rehearse(student, batch, Kind()).kept, rel=0.02
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_activations_of_every_kind_of_tower_are_told(kind, tmp_path):
    """Hugging Face's too, which look at their masks."""
    towers, batch = student(kind, tmp_path), batch_of(torch.ones(4, 12, dtype=torch.int64), 3)
    lean(towers)
    assert really_kept(towers, batch) == pytest.approx(
        rehearse(towers, batch, Kind()).kept, rel=0.02
    )


@pytest.mark.parametrize(("captions", "pictures"), [(4, 0), (0, 3)])
def test_a_tower_without_rows_is_rehearsed_on_a_blank_as_it_is_run(tmp_path, captions, pictures):
    towers = student("plain", tmp_path)
    lean(towers)
    batch = batch_of(torch.ones(captions, 12, dtype=torch.int64), pictures)
    shown = Showing(towers, torch.device("cpu"))(batch, batch.pixels, STUDENT)
    blank = batch_of(shown.captions, len(shown.pictures))
    assert rehearse(towers, batch, Kind()) == rehearse(towers, blank, Kind())


def test_the_student_itself_is_left_alone():
    config = load_config(config_path("demo"), overrides("demo"))
    clip = clips.load(config.model)
    student = clips.student_of(clip, frozenset(Tower), config.model, temperature=False)
    before = copy.deepcopy(student.state_dict())
    batch = next(Batches(config.objectives, config.data, clip, 0, 0, 1))
    rehearse(student, batch, Kind())
    for name, tensor in student.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name])


def test_gradients_are_sent_with_as_many_of_those_before_as_there_is_room_for():
    uses = {f"{i}": Use(values, i, i) for i, values in enumerate((30, 4, 5, 6))}
    found = Rehearsal(uses=uses)
    assert found.fullest_bucket(40) == 30  # 6, 5 and 4, then 30 alone
    assert found.fullest_bucket(44) == 30
    assert found.fullest_bucket(45) == 45
    assert found.fullest_bucket(20) == 30  # one that is larger than the bucket goes alone


def test_what_is_sent_is_copied_beside_what_is_kept_by_then():
    found = Rehearsal(kept=100, uses={"first": Use(30, 0, 0), "last": Use(15, 90, 90)})
    assert found.peak(Gradients(1, 0), recomputes=False) == 100
    assert found.peak(Gradients(1, 0, copied=2, together=45), recomputes=False) == 90 + 2 * 15
    assert found.peak(Gradients(1, 0, copied=3, together=45), recomputes=False) == 90 + 3 * 15
    assert found.peak(Gradients(1, 0, copied=2, together=4), recomputes=False) == 100
