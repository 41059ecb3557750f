"""What a run would do, in words, before a machine is booked: its model loaded, one batch drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer.api import Tower
from trainer.configuration.config import Config
from trainer.data.batches import Batch, Batches
from trainer.data.steps import check_sizes
from trainer.models import clip as clips
from trainer.models.clip import Clip, Towers
from trainer.optim import check_movable
from trainer.planning.capacity import Capacity
from trainer.planning.communication import sent_in_step
from trainer.planning.plan import Sizes, kind_of, plan_of
from trainer.planning.rehearsal import rehearse
from trainer.strategies.launching import Launch
from trainer.system.files import size_of

Line = tuple[str, str]
INDENT = 14  # columns
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon and AdamW"}


def planned(
    file: Path | None, num_devices: int | None, device_gb: float | None
) -> tuple[Launch, Capacity]:
    """How the run would be launched, and on what: as said, else as it is here.

    file: of launch/; without, what `accelerate launch` told this process. device_gb: of a GPU.
    """
    launch = Launch.of_file(file) if file else Launch.of_environment()
    if num_devices is not None:
        launch = launch.on(num_devices)
    return launch, Capacity(device_gb * 1e9, "cuda") if device_gb else Capacity.here(launch)


def describe_run(config: Config, launch: Launch, capacity: Capacity) -> str:
    """The resolved run. Reads rosters, shards, the shapes of weights. Raises what a run would."""
    launch.check(config.optimizer)
    check_sizes(config.objectives, config.data.lanes, launch.num_devices, launch.parts)
    clip = clips.load(config.model, weightless=True)
    student = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
    check_movable(student, config.optimizer)
    data = config.data.model_copy(update={"workers": 0})  # one batch is not worth their start
    batch = next(Batches(config.objectives, data, clip, config.seed, 0, launch.num_devices))
    lines = [
        *_model(config, clip.model, student),
        *_objectives(config, batch),
        *_batch(batch),
        *_steps(config, launch),
        *_memory(config, launch, capacity, clip, student, batch),
        *_evaluations(config),
        *_embeddings(config),
        ("writes", f"{config.output}/"),
        ("", "config.yaml, metrics.jsonl, results.json, report.html, model/, checkpoints/"),
        ("trackers", ", ".join(config.trackers) or "none beside metrics.jsonl"),
    ]
    return "\n".join(f"{head:<{INDENT}}{text}" for head, text in lines)


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


def _steps(config: Config, launch: Launch) -> Iterator[Line]:
    pairs = sum(one.options.batch_size for one in config.objectives.values())
    optimizer = config.optimizer
    images = f" ({optimizer.image_lr:g} in the image tower)" if optimizer.image_lr else ""
    rate = f"{OPTIMIZERS[optimizer.kind]}, lr {optimizer.lr:g}{images}, {optimizer.schedule}"
    yield "steps", f"{config.steps:,} of {pairs:,} pairs: {config.steps * pairs:,} in all; {rate}"
    dtype = {"no": "float32"}.get(launch.precision, launch.precision)
    each = f"{pairs // launch.num_devices:,} pairs a step each"
    in_parts = f" in {launch.parts} parts" if launch.parts > 1 else ""
    yield "processes", f"{launch.num_devices} ({launch.strategy}), {each}{in_parts}, in {dtype}"


def _memory(
    config: Config,
    launch: Launch,
    capacity: Capacity,
    clip: Clip,
    student: Towers,
    batch: Batch,
) -> Iterator[Line]:
    sizes = Sizes.of(student, clip, config.optimizer.kind)
    kind = kind_of(launch, capacity.device)
    part = batch.split(launch.parts)[0]
    full = student.text_forward.keywords["full_length"]
    longest = replace(part, tokens=torch.ones(len(part.tokens), full, dtype=torch.int64))
    here, there = (
        plan_of(config, launch, capacity.device, sizes, rehearse(student, one, kind), batch)
        for one in (part, longest)
    )
    yield "memory", f"{size_of(here.peak)} a device at most, of the first batch's lengths"
    for name, size in sorted(here.parts.items(), key=lambda part: -part[1]):
        yield "", f"{size_of(size):>9}  {name}"
    recomputes = config.memory.activation_checkpointing
    other = f"memory.activation_checkpointing={str(not recomputes).lower()}"
    yield "", f"{size_of(here.other_activations):>9}  instead for activations, with {other}"
    yield (
        "",
        capacity.verdict(there.peak, f"captions of {full} tokens" if student.text else "pictures"),
    )
    sent = sent_in_step(launch, sizes, config.memory.teacher != "whole")
    what = ", ".join(f"{name} {size_of(size)}" for name, size in sent.items())
    yield "sends", f"{size_of(sum(sent.values()))} a device and step: {what}" if sent else "nothing"


def _embeddings(config: Config) -> Iterator[Line]:
    if config.data.embeddings is None:
        return
    where = f"in {config.data.index}" if config.data.index else "beside their shards"
    what = "must be there" if config.data.embeddings == "use" else "first made where missing"
    yield "embeddings", f"the teacher's of clean samples, kept {where}; {what}"


def _evaluations(config: Config) -> Iterator[Line]:
    for place, (name, one) in enumerate(config.evaluations.items()):
        when = f", every {one.options.every} steps" if one.options.every else ""
        text = f"{name} ({one.kind}): before{when} and after"
        yield "" if place else "evaluations", text
