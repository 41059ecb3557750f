from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors import safe_open

from tests.trainer.architectures import (
    KINDS,
    TEXTS,
    embed,
    open_clip_tokens,
    pixels,
)
from trainer.api import Tower
from trainer.configuration.sections import ModelConfig, OptimizerConfig
from trainer.models.clip import Clip, Towers, fastest_attention, frozen, load, student_of
from trainer.models.export import export
from trainer.models.text_towers import cut_text, short_text
from trainer.optim import make_optimizer

BOTH = frozenset(Tower)


def trained(clip: Clip, towers: frozenset[Tower] = BOTH, steps: int = 1) -> Towers:
    student = student_of(clip, towers, ModelConfig(name="x"), temperature=True)
    optimizer = make_optimizer(student, OptimizerConfig(lr=0.01))
    for _ in range(steps):
        tokens = clip.tokenize(TEXTS) if Tower.TEXT in towers else None
        text, image, scale = student(tokens, pixels() if Tower.IMAGE in towers else None)
        loss = sum(one.square().mean() for one in (text, image) if one is not None) + scale / 100
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


def weights(student: Towers) -> dict[str, torch.Tensor]:
    return {name: p for name, p in student.named_parameters()}


def assert_same_embeddings(model: Any, clip: Clip, student: Towers) -> None:
    """To the last bit, at the same length of text."""
    text, image = embed(model.eval(), clip, pixels())
    with torch.no_grad(), fastest_attention(torch.device("cpu")):
        wanted_text, wanted_image, _ = student(open_clip_tokens(clip), pixels())
        if student.text_forward.func is short_text:  # captions of like length apart: other sums
            torch.testing.assert_close(text, wanted_text)
            wanted_text = cut_text(student.text, open_clip_tokens(clip))
    assert torch.equal(text, wanted_text) and torch.equal(image, wanted_image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_loads_an_export_and_embeds_the_same_to_the_last_bit(
    originals, tmp_path, kind, dtype
):
    original = originals[kind]
    student = trained(original.clip)
    file = export(original.clip, weights(student), tmp_path, dtype)
    loaded = open_clip.create_model(original.name, pretrained=str(file), require_pretrained=True)
    rounded = copy.deepcopy(student)
    for tensor in rounded.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
    assert_same_embeddings(loaded, original.clip, rounded)
    assert loaded.logit_scale == student.logit_scale.to(dtype)
    assert loaded.logit_scale != original.model.logit_scale
    changed = embed(original.model, original.clip, pixels())[0]
    assert not torch.equal(changed, embed(loaded, original.clip, pixels())[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_is_a_model_of_its_own(originals, tmp_path, kind):
    clip = originals[kind].clip
    student = trained(clip)
    export(clip, weights(student), tmp_path, torch.float32)
    loaded = load(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert loaded.prepare == clip.prepare
    assert torch.equal(loaded.tokenize(TEXTS), clip.tokenize(TEXTS))
    # Frozen as a loaded one is: torch then has another way through attention, with other rounding.
    same = frozen(copy.deepcopy(student))
    with torch.no_grad():
        found, wanted = (
            one(clip.tokenize(TEXTS), pixels()) for one in (frozen(Towers(loaded, BOTH)), same)
        )
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    model: Any = open_clip.create_model(f"local-dir:{tmp_path}", require_pretrained=True)
    assert_same_embeddings(model, clip, student)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_train_is_the_originals_to_the_last_bit(originals, tmp_path, kind):
    original = originals[kind]
    student = trained(original.clip, frozenset({Tower.TEXT}))
    file = export(original.clip, weights(student), tmp_path, torch.float32)
    loaded = open_clip.create_model(original.name, pretrained=str(file)).state_dict()
    before = original.model.state_dict()
    assert loaded.keys() == before.keys()
    apart = kind not in ("plain", "quick", "resnet")
    for name, tensor in loaded.items():
        of_text = name.startswith("text.") if apart else not name.startswith("visual.")
        if not of_text and name != "logit_scale":
            assert torch.equal(tensor, before[name]), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in loaded.items())


def test_the_bias_of_the_logits_survives(originals, tmp_path):
    original = originals["sigmoid"]
    file = export(original.clip, weights(trained(original.clip)), tmp_path, torch.float32)
    loaded: Any = open_clip.create_model(original.name, pretrained=str(file))
    assert loaded.logit_bias == original.model.logit_bias != 0


def test_batch_norms_statistics_stay_the_originals(originals, tmp_path):
    original = originals["resnet"]
    student = trained(original.clip, steps=3)
    file = export(original.clip, weights(student), tmp_path, torch.float32)
    loaded = open_clip.create_model(original.name, pretrained=str(file)).state_dict()
    before = original.model.state_dict()
    statistics = [name for name in before if "running_" in name or "num_batches" in name]
    assert len(statistics) > 30
    for name in statistics:
        assert torch.equal(loaded[name], before[name])
        assert torch.equal(student.state_dict()[name.replace("visual.", "image.")], before[name])


def test_counters_stay_whole_numbers_and_what_float16_cannot_hold_keeps_its_type(
    originals, tmp_path
):
    original = originals["resnet"]
    clip = copy.deepcopy(original.clip)
    model: Any = clip.model
    model.visual.bn1.running_var.fill_(1e6)
    model.visual.bn1.num_batches_tracked.fill_(12_345)
    file = export(clip, {}, tmp_path, torch.float16)
    with safe_open(file, "pt") as saved:
        assert saved.get_tensor("visual.bn1.running_var").dtype == torch.float32
        assert saved.get_tensor("visual.bn1.running_mean").dtype == torch.float16
    loaded: Any = open_clip.create_model(original.name, pretrained=str(file))
    assert loaded.visual.bn1.running_var.eq(1e6).all()
    assert loaded.visual.bn1.num_batches_tracked == 12_345


def test_an_export_leaves_the_original_and_the_student_alone(originals, tmp_path):
    clip = originals["plain"].clip
    student = trained(clip)
    before = copy.deepcopy((clip.model.state_dict(), student.state_dict()))
    export(clip, weights(student), tmp_path, torch.bfloat16)
    for state, module in zip(before, (clip.model, student), strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_the_config_says_what_the_model_is_and_nothing_is_left_beside(originals, tmp_path):
    original = originals["plain"]
    export(original.clip, weights(trained(original.clip)), tmp_path, torch.float32)
    # Over an earlier one.
    export(original.clip, weights(trained(original.clip)), tmp_path, torch.float32)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert config["model_cfg"] == open_clip.get_model_config(original.name)
    assert config["preprocess_cfg"]["size"] in (32, [32, 32])
    assert {path.name for path in tmp_path.iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }


def test_who_reads_the_config_reads_the_weights_and_a_killed_export_leaves_nothing(
    originals, tmp_path
):
    clip = originals["plain"].clip
    (tmp_path / ".tmpA1b2C3").write_bytes(b"half")  # as safetensors names it
    file = export(clip, weights(trained(clip)), tmp_path, torch.float32)
    assert file.stat().st_mode == (tmp_path / "open_clip_config.json").stat().st_mode
    assert not list(tmp_path.glob(".*"))


def test_an_export_that_fails_leaves_the_earlier_one(originals, tmp_path, monkeypatch):
    clip = originals["plain"].clip
    file = export(clip, weights(trained(clip)), tmp_path, torch.float32)
    before = file.read_bytes()

    def fails(tensors, path: Path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("trainer.models.export.save_file", fails)
    with pytest.raises(OSError, match="No space"):
        export(clip, weights(trained(clip)), tmp_path, torch.float32)
    assert file.read_bytes() == before


def test_a_tensor_of_two_names_is_written_twice(originals, tmp_path):
    original = originals["plain"]
    clip = copy.deepcopy(original.clip)
    model: Any = clip.model
    model.visual.ln_post.weight = model.visual.ln_pre.weight  # safetensors refuses such
    file = export(clip, weights(trained(clip)), tmp_path, torch.float32)
    loaded: Any = open_clip.create_model(original.name, pretrained=str(file))
    assert torch.equal(loaded.visual.ln_post.weight, loaded.visual.ln_pre.weight)
