"""What a dry run says, and that it tells what a run would stumble over."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.conftest import REPOSITORY
from tests.trainer.test_train import config_path, overrides
from trainer.configuration.config import load_config
from trainer.planning.dry_run import describe_run, planned


@pytest.fixture(autouse=True)
def _in_the_world(small_world, monkeypatch):
    monkeypatch.chdir(small_world)


def dry_run(name: str, *more: str) -> str:
    config = load_config(config_path(name), overrides(name, *more))
    return describe_run(config, *planned(None, None, None))


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
        "2 (ddp), 20 pairs a step each, in bf16",
        "identity_inference (identity_inference): before and after",
        "runs/nothing/",
    ):
        assert line in told
    assert not Path("runs/nothing").exists()


def test_of_what_muon_moves_there_is_one_moment(monkeypatch):
    told = {kind: dry_run("demo_faces", f"optimizer.kind={kind}") for kind in ("adamw", "muon")}
    assert "; Muon and AdamW, lr" in told["muon"]
    sizes = [float(re.search(r"([\d.]+) MB +moments", text)[1]) for text in told.values()]
    assert 1.5 < sizes[0] / sizes[1] < 2  # nearly all of it is matrices
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="optimizer.kind=muon"):
        dry_run("demo_faces", "optimizer.kind=muon")


def test_muon_without_a_matrix_to_move_is_refused():
    with pytest.raises(ValueError, match="optimizer.kind=muon moves the matrices of a tower's"):
        dry_run("demo_faces", "optimizer.kind=muon", "model.freeze=['*weight']")


def test_it_tells_of_embeddings_that_are_to_be_kept():
    told = dry_run("demo", "data.embeddings=make", "data.index=kept")
    assert "the teacher's of clean samples, kept in kept; first made where missing" in told
    assert "beside their shards; must be there" in dry_run("demo", "data.embeddings=use")
    assert "embeddings" not in dry_run("demo_names")


def test_a_tower_that_nobody_trains_is_untouched():
    assert "image tower: 910,592 parameters, untouched" in dry_run("demo_names")


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


def test_without_a_launch_it_plans_for_a_launch_file_and_the_devices_named():
    config = load_config(config_path("demo"), overrides("demo"))
    launch, machine = planned(REPOSITORY / "launch/zero2.yaml", 4, 80.0)
    told = describe_run(config, launch, machine)
    assert "4 (zero2), 10 pairs a step each, in bf16" in told
    assert "fits 80.00 GB" in told
    assert "weights" in told.split("sends")[1]
    small = describe_run(config, launch, replace(machine, bytes=1e6))
    assert "does NOT fit 1.0 MB" in small


def test_where_the_cpu_is_asked_for_it_plans_for_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    assert planned(None, None, None)[1].device == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert planned(None, None, None)[1].device == "cpu"


def test_no_weights_are_fetched(monkeypatch):
    """open_clip's downloads would fail here, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    big = ["model.name=ViT-bigG-14", "model.pretrained=laion2b_s39b_b160k", "model.freeze=[]"]
    told = dry_run("demo", *big, "model.random_weights=false")
    assert "image tower: 1,844,907,264 parameters" in told
