"""What a dry run says, and that it tells what a run would stumble over."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.trainer.architectures import KINDS
from tests.trainer.test_flops import batch_of, student
from tests.trainer.test_train import config_path, overrides
from trainer import clip as clips
from trainer.api import Tower
from trainer.batches import Batch, Batches
from trainer.clip import Towers
from trainer.config import load_config
from trainer.dry_run import describe_run, saved_bytes


@pytest.fixture(autouse=True)
def _in_the_world(small_world, monkeypatch):
    monkeypatch.chdir(small_world)


def dry_run(name: str, *more: str) -> str:
    return describe_run(load_config(config_path(name), overrides(name, *more)))


def test_it_prints_the_whole_run(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    told = dry_run("demo", "output=runs/nothing", "objectives.keep.weight=1.5", "optimizer.lr=1e-3")
    for line in (
        "text tower: 7,138,048 parameters, 809,728 of them trained",
        "image tower: 910,592 parameters, 910,592 of them trained",
        "keep (preserve): 8 pairs a step, trains image and text, weight 1.5",
        "names (name_to_person): 16 pairs a step, trains text, weight 1, 2 people to forget",
        "4 of 40 pairs: 160 in all; AdamW, lr 0.001, cosine",
        "2, 20 pairs a step each, in bf16",
        "identity_inference (identity_inference): before and after",
        "runs/nothing/",
    ):
        assert line in told
    assert not Path("runs/nothing").exists()


def test_a_tower_that_nobody_trains_is_untouched():
    assert "image tower: 910,592 parameters, untouched" in dry_run("demo_names")


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
    student = clips.student_of(clip, frozenset(Tower), config.model, temperature=False)
    batch = next(Batches(config.objectives, config.data, clip, 0, 0, 1))
    assert really_kept(student, batch) == pytest.approx(saved_bytes(student, batch), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_activations_of_every_kind_of_tower_are_told(kind, tmp_path):
    """Hugging Face's too, which look at their masks and so refuse the meta device."""
    towers, batch = student(kind, tmp_path), batch_of(torch.ones(4, 12, dtype=torch.int64), 3)
    assert really_kept(towers, batch) == pytest.approx(saved_bytes(towers, batch), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.shards=runs/world/clean/nothing.tar", "nothing.tar is not there"),
        ("model.name=ViT-B-33", "ViT-B-33"),
        ("data.lanes=3", None),
    ],
)
def test_it_raises_what_a_run_would(monkeypatch, change, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises((ValueError, FileNotFoundError), match=message or "not a multiple"):
        dry_run("demo", change)


def test_the_student_itself_is_left_alone():
    config = load_config(config_path("demo"), overrides("demo"))
    clip = clips.load(config.model)
    student = clips.student_of(clip, frozenset(Tower), config.model, temperature=False)
    before = copy.deepcopy(student.state_dict())
    batch = next(Batches(config.objectives, config.data, clip, 0, 0, 1))
    saved_bytes(student, batch)
    for name, tensor in student.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name])
