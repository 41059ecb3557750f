"""What a run would do, in words, before a machine is booked: its model loaded, one batch drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainer import clip as clips
from trainer.api import Tower
from trainer.batches import STUDENT_IMAGE, STUDENT_TEXT, Batch, Batches
from trainer.clip import Towers
from trainer.config import Config
from trainer.flops import weightless
from trainer.steps import check_sizes

Line = tuple[str, str]
INDENT = 14  # columns


def describe_run(config: Config) -> str:
    """The resolved run. Really loads the weights and reads the shards, so that both are checked.

    Counts processes and precision as `accelerate launch` tells them. Raises what a run would.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    parts = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    check_sizes(config.objectives, config.data.lanes, ranks, int(parts) if parts.isdigit() else 1)
    clip = clips.load(config.model)
    student = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
    data = config.data.model_copy(update={"workers": 0})  # one batch is not worth their start
    batch = next(Batches(config.objectives, data, clip, config.seed, 0, ranks))
    lines = [
        *_model(config, clip.model, student),
        *_objectives(config, batch),
        *_batch(batch),
        *_steps(config, ranks, precision),
        *_memory(memory_of(student, batch, config, precision)),
        *_evaluations(config),
        ("writes", f"{config.output}/"),
        ("", "config.yaml, metrics.jsonl, results.json, report.html, model/, checkpoints/"),
        ("trackers", ", ".join(config.trackers) or "none beside metrics.jsonl"),
    ]
    return "\n".join(f"{head:<{INDENT}}{text}" for head, text in lines)


def memory_of(student: Towers, batch: Batch, config: Config, precision: str) -> dict[str, int]:
    """Expected bytes on a device without sharding, by what holds them."""
    weights = _bytes(student.parameters())
    trained = _bytes(p for p in student.parameters() if p.requires_grad)
    activations = saved_bytes(student, batch)
    if precision != "no":
        activations //= 2  # nearly all of them; the sums of the norms stay float32
    memory = {
        "student": weights,
        "gradients": trained,
        "AdamW's moments": 2 * trained,
        "original weights to pull to": trained if config.optimizer.anchor else 0,
        "teacher": weights,
        "activations": activations,
    }
    return {name: size for name, size in memory.items() if size}


def saved_bytes(student: Towers, batch: Batch) -> int:
    """Bytes that the student's forward keeps for its backward on this batch, in float32.

    Run where nothing is computed and shapes are exact, see `weightless`.
    """
    model = weightless(student)
    device = model.logit_scale.device
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    text, image = batch.seen_by(STUDENT_TEXT), batch.seen_by(STUDENT_IMAGE)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            batch.tokens[text].to(device) if len(text) else None,
            batch.pixels[image].to(device) if len(image) else None,
        )
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in storages.values())


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _model(config: Config, model: Any, student: Towers) -> Iterator[Line]:
    weights = config.model.pretrained or ("random" if config.model.random_weights else "its own")
    yield "model", f"{config.model.name}, weights: {weights}"
    for tower, original, trained in (
        (Tower.TEXT, model.text, student.text),
        (Tower.IMAGE, model.visual, student.image),
    ):
        total = sum(p.numel() for p in original.parameters())
        if trained is None:
            what = f"{total:,} parameters, untouched"
        else:
            free = sum(p.numel() for p in trained.parameters() if p.requires_grad)
            what = f"{total:,} parameters, {free:,} of them trained"
        yield "", f"{tower.value} tower: {what}"


def _objectives(config: Config, batch: Batch) -> Iterator[Line]:
    for place, (name, one) in enumerate(config.objectives.items()):
        towers = " and ".join(sorted(tower.value for tower in one.towers))
        pairs = f"{one.options.batch_size} pairs a step"
        people = f", {one.num_identities:,} people to forget" if one.num_identities else ""
        text = (
            f"{name} ({one.kind}): {pairs}, trains {towers}, weight {one.options.weight:g}{people}"
        )
        yield "" if place else "objectives", text


def _batch(batch: Batch) -> Iterator[Line]:
    """Of the first process."""
    captions, length = batch.tokens.shape
    yield (
        "first batch",
        f"{captions:,} different captions of up to {length} tokens, {len(batch.pixels):,} pictures",
    )
    if batch.skips.reasons:
        counts = ", ".join(
            f"{count} {reason}" for reason, count in batch.skips.reasons.most_common()
        )
        yield "", f"skipped on the way: {counts}"


def _steps(config: Config, ranks: int, precision: str) -> Iterator[Line]:
    pairs = sum(one.options.batch_size for one in config.objectives.values())
    rate = f"AdamW, lr {config.optimizer.lr:g}, {config.optimizer.schedule}"
    yield "steps", f"{config.steps:,} of {pairs:,} pairs: {config.steps * pairs:,} in all; {rate}"
    dtype = {"no": "float32"}.get(precision, precision)
    yield "processes", f"{ranks}, {pairs // ranks:,} pairs a step each, in {dtype}"


def _memory(memory: dict[str, int]) -> Iterator[Line]:
    yield "memory", f"about {_size(sum(memory.values()))} a device, if nothing is sharded:"
    yield "", ", ".join(f"{name} {_size(size)}" for name, size in memory.items())


def _evaluations(config: Config) -> Iterator[Line]:
    for place, (name, one) in enumerate(config.evaluations.items()):
        when = f", every {one.options.every} steps" if one.options.every else ""
        text = f"{name} ({one.kind}): before{when} and after"
        yield "" if place else "evaluations", text


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
