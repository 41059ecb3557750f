"""What a run really allocates on a CPU, and hands to its collectives; and what was planned of it.

As a program: the trainer's command line, with torch's own account of its allocations kept until the
last step is over.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.conftest import REPOSITORY, picture, write_people, write_shard
from trainer.configuration.config import load_config
from trainer.data.batches import Batches
from trainer.models import clip as clips
from trainer.planning.communication import sent_in_step
from trainer.planning.plan import FULL, Sizes, kind_of, plan_of
from trainer.planning.rehearsal import rehearse
from trainer.strategies.launching import Launch

STEPS = 2
WORDS = "a red hat on the old table near a large window with green curtains and flowers"
RUN = """
model: {name: ViT-B-32, random_weights: true}
data: {shards: clean.tar, workers: 0, lanes: 8}
objectives:
OBJECTIVES
optimizer: {lr: 1.0e-4}
steps: 2
checkpoint: {every: null}
"""
TEXT = """
  keep: {kind: preserve, towers: [text], batch_size: 64}
  names: {kind: name_to_person, batch_size: 64, roster: forget.jsonl}
"""
BOTH = """
  keep: {kind: preserve, batch_size: 32}
  names: {kind: name_to_person, batch_size: 32, roster: forget.jsonl}
  faces: {kind: face_to_neutral, batch_size: 16, roster: forget.jsonl, target: text}
"""
# Input Dims of one call: what is gathered stands before a rank's own part of it.
OF_CALL = {"c10d::allreduce_": 2, "c10d::_allgather_base_": 1, "c10d::_reduce_scatter_base_": 1}


def write_world(folder: Path) -> Path:
    write_shard(
        folder / "clean.tar",
        {
            f"{i:04}": {"jpg": picture(i), "txt": f"{WORDS[: 30 + 5 * (i % 10)]} {i}"}
            for i in range(400)
        },
    )
    write_people(folder, "forget", [f"Joe Doe{chr(97 + i)}" for i in range(8)])
    for name, objectives in {"text": TEXT, "both": BOTH}.items():
        (folder / f"{name}.yaml").write_text(RUN.replace("OBJECTIVES", objectives.strip("\n")))
    return folder


def measured(
    folder: Path,
    name: str,
    file: str,
    options: list[str],
    *overrides: str,
    python: str = sys.executable,
) -> list[dict]:
    """Of each rank: `peak`, the most bytes at a time; `sent`, by rings, in a step."""
    launcher = [python, "-m", "accelerate.commands.launch"]
    where = ["--config_file", str(REPOSITORY / "launch" / file), *options]
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHON_EXEC": python}
    if "--gradient_accumulation_steps" in options:
        environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = options[-1]
    for old in folder.glob("measured-*.json"):
        old.unlink()
    done = subprocess.run(
        [*launcher, *where, __file__, "train", f"{name}.yaml", *overrides],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("measured-*.json"))]


def planned(folder: Path, name: str, launch: Launch, *overrides: str) -> tuple[list[int], float]:
    """Of each rank the largest peak of the steps' own batches; and how many values each sends in a
    step. Called in the folder."""
    config = load_config(folder / f"{name}.yaml", overrides)
    clip = clips.load(config.model, weightless=True)
    student = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
    sizes = Sizes.of(student, clip)
    peaks = []
    for rank in range(launch.num_devices):
        drawn = Batches(config.objectives, config.data, clip, 0, rank, launch.num_devices)
        rows = [
            (rehearse(student, part, kind_of(launch, "cpu")), batch)
            for batch in islice(drawn, config.steps)
            for part in batch.split(launch.parts)
        ]
        each = [plan_of(config, launch, "cpu", sizes, one, batch).peak for one, batch in rows]
        peaks.append(max(each))
    sent = sent_in_step(launch, sizes, config.memory.teacher != "whole")
    in_full = {"gradients"} if launch.strategy in ("ddp", "fsdp2") else set()
    sizes_of = {name: FULL if name in in_full else launch.dtype.itemsize for name in sent}
    return peaks, sum(size / sizes_of[name] for name, size in sent.items())


@contextmanager
def products_in_float32() -> Iterator[None]:
    """Products of bfloat16 where a CPU has none: torch's take ten minutes for what these do in two.

    What they need beside their result is numpy's, so that torch's account is that of its own.
    """
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("mm", mm, "CPU", allow_override=True)
        library.impl("addmm", addmm, "CPU", allow_override=True)
        yield


def mm(left: Tensor, right: Tensor) -> Tensor:
    result = torch.empty(len(left), right.shape[1], dtype=left.dtype)
    if left.dtype != torch.bfloat16:
        return torch.mm(left, right, out=result)
    return rounded(in_float32(left) @ in_float32(right), result)


def addmm(added: Tensor, left: Tensor, right: Tensor, *, beta=1, alpha=1) -> Tensor:
    result = torch.empty(len(left), right.shape[1], dtype=left.dtype)
    if left.dtype != torch.bfloat16 or (beta, alpha) != (1, 1):
        return torch.addmm(added, left, right, beta=beta, alpha=alpha, out=result)
    return rounded(in_float32(left) @ in_float32(right) + in_float32(added), result)


def rounded(product: np.ndarray, result: Tensor) -> Tensor:
    bits(result)[:] = (product.view(np.uint32) + 0x8000) >> 16
    return result


def in_float32(tensor: Tensor) -> np.ndarray:
    return (bits(tensor).astype(np.uint32) << 16).view(np.float32)


def bits(tensor: Tensor) -> np.ndarray:
    """Of each bfloat16. Not by `numpy`, after which FSDP2 may not free what it gathered."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    values = (ctypes.c_uint16 * (last + 1)).from_address(tensor.data_ptr())
    return np.ndarray(tensor.shape, np.uint16, values, 0, [2 * step for step in tensor.stride()])


def main() -> None:
    from trainer import train as training
    from trainer.cli import main as command

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True)
    prepare = training.prepare

    def prepare_and_note(*given):
        student, optimizer, spread = prepare(*given)
        weights = spread.weights

        def noted():
            """Asked for when the last step is over."""
            profiler.__exit__(None, None, None)
            note(profiler)
            return weights()

        spread.weights = noted
        return student, optimizer, spread

    training.prepare = prepare_and_note
    with ExitStack() as entered:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            entered.enter_context(products_in_float32())
        profiler.__enter__()
        command()


def note(profiler: profile) -> None:
    rank, ranks = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    profiler.export_chrome_trace(f"trace-{rank}.json")
    trace = Path(f"trace-{rank}.json")
    events = json.loads(trace.read_text())["traceEvents"]
    trace.unlink()
    memory = [event for event in events if event.get("name") == "[memory]"]
    changes = [e["args"]["Bytes"] for e in sorted(memory, key=lambda event: event["ts"])]
    sent = 0.0
    for event in events:
        if event.get("name") in OF_CALL and (sizes := dims(event)):
            # All-reduce names its tensors once, the others the whole and the part.
            sent += OF_CALL[event["name"]] * max(sizes) * (ranks - 1) / ranks
    found = {"peak": max(accumulate(changes)), "sent_values": sent / STEPS}
    Path(f"measured-{rank}.json").write_text(json.dumps(found))


def dims(event: dict) -> list[int]:
    """Numbers of values of an event's tensors."""
    shapes = re.findall(r"\[([\d, ]+)\]", str(event["args"].get("Input Dims", "")))
    return [math.prod(int(side) for side in shape.split(",") if side.strip()) for shape in shapes]


if __name__ == "__main__":
    main()
