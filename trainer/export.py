"""The trained towers as a checkpoint that open_clip loads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.clip import Clip, Towers
from trainer.zoo import CONFIG

WEIGHTS = "open_clip_model.safetensors"


def export(clip: Clip, student: Towers, folder: Path, dtype: torch.dtype) -> Path:
    """Write weights and config; `open_clip.create_model(name, pretrained=FILE)` reads the one,
    `local-dir:FOLDER` both. Towers that were not trained are the original's. Returns the file.
    """
    model: Any = clip.model
    state = with_student(clip, student)
    if not clip.has_custom_text:
        # The reverse of open_clip's `convert_to_custom_text_state_dict`.
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    tensors = {name: rounded(tensor, dtype) for name, tensor in state.items()}
    config = {"model_cfg": clip.architecture, "preprocess_cfg": model.visual.preprocess_cfg}
    folder.mkdir(parents=True, exist_ok=True)
    clip.tokenize.save(folder)
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2)))
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}))
    return folder / WEIGHTS


def with_student(clip: Clip, student: Towers) -> dict[str, Tensor]:
    """The whole model's state with the student's towers in their places; no copies."""
    state = dict(clip.model.state_dict())
    for prefix, tower in (("text.", student.text), ("visual.", student.image)):
        if tower is not None:
            state |= {prefix + name: tensor for name, tensor in tower.state_dict().items()}
    state["logit_scale"] = student.logit_scale.detach().reshape(state["logit_scale"].shape)
    return state


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU, shared with no other: so safetensors wants it.

    Counters stay whole numbers, and what is beyond float16 keeps its type, not to become infinite.
    """
    if tensor.is_floating_point() and tensor.abs().amax() <= torch.finfo(dtype).max:
        return tensor.detach().to("cpu", dtype, copy=True).contiguous()
    return tensor.detach().to("cpu", copy=True).contiguous()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or absent: written aside, then renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    write(aside)
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
