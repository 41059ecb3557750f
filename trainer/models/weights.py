"""Checkpoints are other people's files: nothing in them may run, what does not fit is told."""

from __future__ import annotations

import logging
import math
import mmap
import re
import zipfile
from pathlib import Path

import torch
from open_clip.factory import load_checkpoint
from safetensors import safe_open
from torch import Tensor, nn

log = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]
IN_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
POSITIONS = ("visual.positional_embedding", "text.positional_embedding")  # open_clip resizes these


def check_size(model: nn.Module, path: Path, name: str) -> tuple[Shapes, Shapes]:
    """Of a checkpoint file for the model, what is found and what is wanted: shapes alone are read.

    Raises ValueError where it is none, or holds far more.
    """
    found = shapes_in(path)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    # What shapes claim is not yet in memory.
    if _num_values(found) > 2 * _num_values(wanted):
        raise ValueError(_does_not_fit(path, name, found, wanted))
    return found, wanted


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """A checkpoint file into a model whose text tower stands apart; name: the architecture's.

    Raises ValueError where the file is none, may run code, or is of another architecture.
    """
    found, wanted = check_size(model, path, name)
    try:
        load_checkpoint(model, str(path))  # strict, and of tensors alone  # type: ignore[arg-type]
    except Exception as error:  # also of open_clip's own conversions, that trust what they get
        raise ValueError(_does_not_fit(path, name, found, wanted)) from error
    for key in POSITIONS:
        if key in found and found[key] != wanted[key]:
            log.warning(
                "%s has %s positions in %s, %s has %s: they were interpolated, which changes "
                "the model; is model.name the checkpoint's own?",
                path, found[key][0], key, name, wanted[key][0],
            )  # fmt: skip


def shapes_in(path: Path) -> Shapes:
    """The shape of each tensor, by its name in a model whose text tower stands apart.

    No tensor's data is read. Empty for big_vision's .npz: arrays alone. Raises ValueError.
    """
    try:
        if path.suffix != ".safetensors":
            _refuse_bomb(path)
        if path.suffix == ".npz":
            return {}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        else:
            shapes = _shapes_of(torch.load(path, map_location="meta", weights_only=True))
    except Exception as error:  # whatever hostile bytes make of a reader
        raise ValueError(f"checkpoint {path} was not read: {_reason(error)}") from error
    if "positional_embedding" in shapes:
        shapes = {f"text.{k}" if k.startswith(IN_TEXT) else k: v for k, v in shapes.items()}
    return shapes


class _RefusedError(ValueError):
    """Its message is for the user, as it is."""


def _refuse_bomb(path: Path) -> None:
    """A small file that would fill the memory while it is read."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # as torch tells; a pickle may have one appended
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > 4 * path.stat().st_size:  # weights hardly compress
                raise _RefusedError(f"it would unpack to {unpacked:,} bytes; weights do not")
            allocates = any(
                b"bytearray" in archive.read(entry)
                for entry in entries
                if entry.filename.endswith(".pkl")
            )
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            allocates = data.find(b"bytearray") >= 0
    if allocates:  # torch lets a pickle make one of any size
        raise _RefusedError(
            "it asks to run bytearray, and weights need no code; get it from its maker"
        )


def _shapes_of(content: object) -> Shapes:
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise _RefusedError("it holds no state_dict; save model.state_dict()")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _RefusedError(
                f"its {str(key)[:80]!r} is no tensor; save model.state_dict() alone"
            )
    prefix = "module." if next(iter(content)).startswith("module") else ""
    return {key.removeprefix(prefix): tuple(tensor.shape) for key, tensor in content.items()}


def _reason(error: Exception) -> str:
    message = str(error)
    if isinstance(error, _RefusedError):
        return message
    if isinstance(error, PermissionError):
        return "you may not read it; change its permissions"
    if found := re.search(r"GLOBAL (\S+)", message):
        return (
            f"it asks to run {found[1][:80]}, and weights need no code; "
            "save model.state_dict() alone, best as .safetensors"
        )
    if "TorchScript" in message:
        return "it is a TorchScript archive, which is code; save its state_dict() instead"
    what = f"{type(error).__name__}: {first_line(error)[:120]}"
    return f"it is damaged or no checkpoint ({what}); get it again, or name another"


def first_line(error: Exception) -> str:
    """The first line that says something."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _num_values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _does_not_fit(path: Path, name: str, found: Shapes, wanted: Shapes) -> str:
    missing = sorted(wanted.keys() - found.keys())
    unknown = sorted(found.keys() - wanted.keys())
    differing = [
        key
        for key in sorted(found.keys() & wanted.keys())
        if found[key] != wanted[key]
        # one number, or of another length but as wide: these open_clip makes fit
        and not (math.prod(found[key]) == math.prod(wanted[key]) == 1)
        and not (key in POSITIONS and found[key][1:] == wanted[key][1:])
    ]
    parts = []
    if differing:
        key = differing[0]
        parts.append(
            f"{key} is {found[key]}, not {wanted[key]}, one of {len(differing)} that differ"
        )
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors are missing, as {missing[0]}")
    if unknown:
        parts.append(f"{len(unknown)} are none of the model's, as {unknown[0][:80]}")
    what = "; ".join(parts) or "its values cannot be copied"
    return (
        f"checkpoint {path} does not fit {name}: {what}; "
        "set model.name to the architecture that it was saved from"
    )
