"""The trained towers as a checkpoint that open_clip loads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.clip import Clip, Towers

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


def export(clip: Clip, student: Towers, folder: Path, dtype: torch.dtype) -> Path:
    """Write weights and config; `open_clip.create_model(name, pretrained=FILE)` reads the one,
    `local-dir:FOLDER` both. Towers that were not trained are the original's. Returns the file.
    """
    state = with_student(clip.model, student)
    if not clip.has_custom_text:
        state = without_text_prefix(state)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": clip.architecture, "preprocess_cfg": clip.model.visual.preprocess_cfg}
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2)))
    tensors = {name: tensor.to(dtype).contiguous().cpu() for name, tensor in state.items()}
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}))
    return folder / WEIGHTS


def with_student(model: nn.Module, student: Towers) -> dict[str, Tensor]:
    """The whole model's state with the student's towers in their places."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for prefix, tower in (("text.", student.text), ("visual.", student.image)):
        if tower is not None:
            state |= {prefix + name: tensor for name, tensor in tower.state_dict().items()}
    scale = student.logit_scale.detach().reshape(state["logit_scale"].shape)
    return {name: tensor.clone() for name, tensor in (state | {"logit_scale": scale}).items()}


def without_text_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of open_clip's `convert_to_custom_text_state_dict`."""
    return {name.removeprefix("text."): tensor for name, tensor in state.items()}


def _replace(path: Path, write) -> None:
    """Whole or absent: written aside, then renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    write(aside)
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
