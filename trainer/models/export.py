"""The trained towers as a checkpoint that open_clip loads."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.models.clip import MAX_LOGIT_SCALE, Clip
from trainer.models.zoo import CONFIG
from trainer.system.files import replace, replace_text

WEIGHTS = "open_clip_model.safetensors"


def export(clip: Clip, trained: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> Path:
    """Write weights and config; `open_clip.create_model(name, pretrained=FILE)` reads the one,
    `local-dir:FOLDER` both. trained: by their names in `Towers`; all else is the original's.
    Returns the file.
    """
    model: Any = clip.model
    state = with_trained(clip, trained)
    if not torch.equal(state["logit_scale"].cpu(), model.logit_scale.detach().cpu()):  # it learnt
        state["logit_scale"] = state["logit_scale"].clamp(max=math.log(MAX_LOGIT_SCALE))
    if not clip.has_custom_text:
        # The reverse of open_clip's `convert_to_custom_text_state_dict`.
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    tensors = {name: rounded(tensor, dtype) for name, tensor in state.items()}
    config = {"model_cfg": clip.architecture, "preprocess_cfg": model.visual.preprocess_cfg}
    folder.mkdir(parents=True, exist_ok=True)
    clip.tokenize.save(folder)
    replace_text(folder / CONFIG, json.dumps(config, indent=2))

    def write(path: Path) -> None:
        save_file(tensors, path, {"format": "pt"})
        shutil.copymode(folder / CONFIG, path)  # safetensors' is for its owner alone

    for left in folder.glob(".tmp*"):  # safetensors', of an export that was killed
        left.unlink()
    return replace(folder / WEIGHTS, write)


def with_trained(clip: Clip, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole model's state with the trained weights in their places; no copies."""
    state = dict(clip.model.state_dict())
    # A tensor may stand under several names; it was trained under the first.
    places: dict[int, list[str]] = {}
    for name, parameter in clip.model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    named_alike = {name: names for names in places.values() for name in names}
    for name, tensor in trained.items():
        own = f"visual.{name.removeprefix('image.')}" if name.startswith("image.") else name
        for place in named_alike[own]:
            state[place] = tensor.detach().reshape(state[place].shape)
    return state


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU, shared with no other: so safetensors wants it.

    Counters stay whole numbers, and what is beyond float16 keeps its type, not to become infinite.
    """
    if tensor.is_floating_point() and tensor.abs().amax() <= torch.finfo(dtype).max:
        return tensor.detach().to("cpu", dtype, copy=True).contiguous()
    return tensor.detach().to("cpu", copy=True).contiguous()
