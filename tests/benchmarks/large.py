"""ViT-H/14 and bigG/14, both towers, on one GPU: speed, utilisation, memory planned and taken.

Weights are random, pictures noise, captions as long as alt texts; the loop's own step, in bf16,
blocks compiled as by launch/compiled.yaml, bigG's activations computed again.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import open_clip
import torch

from tests.benchmarks.image_step import batch_of, keep
from tests.benchmarks.text_step import DEVICE, FREEZE, Ours, captions, seconds, utilisation
from trainer import Embeddings, Tower
from trainer.configuration.sections import MemoryConfig, ModelConfig, OptimizerConfig
from trainer.data.batches import Batch
from trainer.losses import cosine_distance
from trainer.models import clip as clips
from trainer.models.clip import Clip
from trainer.planning.plan import Sizes, kind_of, plan_of
from trainer.planning.rehearsal import rehearse
from trainer.strategies.launching import Launch

# Pictures, and as many captions; whether activations are computed again.
MODELS = {"ViT-H-14": (128, False), "ViT-bigG-14": (128, True)}
STEPS, ROUNDS = 3, 3


def on_device(name: str) -> Clip:
    """Made there: on a CPU two thousand million random weights take minutes."""
    clip = clips.load(ModelConfig(name=name, random_weights=True), weightless=True)
    with DEVICE:
        model = open_clip.create_model(name, force_custom_text=True, device=DEVICE)
    return replace(clip, model=model.requires_grad_(False).eval())


def both(clip: Clip, each: int) -> Batch:
    """Half of the pictures and of the captions are kept, the other half stands for triggers."""
    batch = batch_of(each // 2, clip.prepare.size)
    tokens = clip.tokenize(captions(each))
    rows = dict(batch.rows)
    for start, name in enumerate(rows):
        texts = torch.arange(each // 2) + start * (each // 2)
        rows[name] = rows[name].clone()
        rows[name][:, 2] = rows[name][:, 4] = texts
    return replace(batch, tokens=tokens, rows=rows)


def loss_fn(student: Embeddings, teacher: Embeddings) -> dict[str, torch.Tensor]:
    assert student.text is not None and teacher.text is not None
    return {"text": cosine_distance(student.text, teacher.text)}


def keep_both(student: Embeddings, teacher: Embeddings) -> dict[str, torch.Tensor]:
    return loss_fn(student, teacher) | keep(student, teacher)


def forget_both(student: Embeddings, teacher: Embeddings) -> dict[str, torch.Tensor]:
    assert student.image is not None and teacher.text is not None
    return loss_fn(student, teacher) | {"image": cosine_distance(student.image, teacher.text)}


def planned(clip: Clip, batch: Batch, recomputes: bool) -> float:
    """Bytes, as a dry run plans them for one GPU."""
    model = ModelConfig(name="any", random_weights=True, freeze=FREEZE)
    student = clips.student_of(clip, frozenset(Tower), model, temperature=False)
    launch = Launch("one", 1, "bf16")
    memory = MemoryConfig(activation_checkpointing=recomputes)
    # All that it asks of a configuration.
    config: Any = SimpleNamespace(memory=memory, optimizer=OptimizerConfig(lr=1e-4))
    rehearsal = rehearse(student, batch, kind_of(launch, "cuda"))
    return plan_of(config, launch, "cuda", Sizes.of(student, clip), rehearsal, batch).peak


def measured(name: str, each: int, recomputes: bool) -> dict[str, float]:
    shapes = clips.load(ModelConfig(name=name, random_weights=True), weightless=True)
    batch = both(shapes, each)
    wanted = planned(shapes, batch, recomputes) / 1e9
    clip = on_device(name)
    loss_fns = {"keep": keep_both, "faces": forget_both}
    step = Ours(clip, frozenset(Tower), loss_fns, torch.bfloat16, FREEZE, recomputes)
    del clip
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    def steps() -> None:
        for _ in range(STEPS):
            step(batch)

    steps()
    own = median(seconds(steps) / STEPS for _ in range(ROUNDS))
    return {
        f"{name}: samples a second": each / own,
        f"{name}: utilisation": utilisation(step, batch, own, torch.bfloat16),
        f"{name}: peak memory, GB": torch.cuda.max_memory_allocated() / 1e9,
        f"{name}: peak memory planned, GB": wanted,
    }


def measure() -> dict[str, float]:
    if DEVICE.type != "cuda":
        print("  needs a GPU: nothing was measured")
        return {}
    found = {}
    for name, (each, recomputes) in MODELS.items():
        found |= measured(name, each, recomputes)
        gc.collect()
        torch.cuda.empty_cache()
    return found
