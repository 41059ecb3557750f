"""A checkpoint of an earlier start: found, verified, and what a run takes from it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trainer.data.skips import Skips
from trainer.data.steps import StreamState
from trainer.measures import Measures, unpacked
from trainer.strategies.spread import Spread
from trainer.system.files import sha256_of
from trainer.system.randomness import set_random_state

MODEL, OPTIMIZER, RANDOM, STATE, CONFIG, MANIFEST = (
    "student.safetensors", "optimizer.safetensors", "random.pt", "state.json", "config.yaml",
    "manifest.json",
)  # fmt: skip
NAME = re.compile("step-[0-9]{8,}")
FILES = (MODEL, OPTIMIZER, RANDOM, STATE, CONFIG)  # of which the manifest holds digests


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint that was found and verified."""

    folder: Path
    step: int
    stream: StreamState
    before: Measures  # measured at the start of the run
    skips: Skips  # of all processes, up to there
    losses: list[dict[str, float]]  # of each step that is not logged yet, the mean over the ranks
    scale: dict[str, float]  # of fp16's losses

    def window(self, device: torch.device) -> list[dict[str, Tensor]]:
        return [
            {name: torch.tensor(value, device=device) for name, value in one.items()}
            for one in self.losses
        ]

    def load_weights(self, student: nn.Module) -> None:
        """What is trained, before it is prepared. Raises ValueError for those of another model."""
        weights = Tensors(self.folder / MODEL)
        trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        shapes = {name: tuple(p.shape) for name, p in trained.items()}
        if weights.shapes() != shapes:
            raise ValueError(
                f"{self.folder} is of another model ({len(weights)} trained tensors of its own, "
                f"{len(trained)} here); set checkpoint.resume=never to start anew"
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])

    def load_moments(self, spread: Spread, rank: int) -> None:
        """The optimizer's, once it is prepared; fp16's scale; where the random numbers stand."""
        spread.load(Tensors(self.folder / MODEL), Tensors(self.folder / OPTIMIZER))
        spread.load_scale(self.scale)
        states = torch.load(self.folder / RANDOM, weights_only=True)
        if rank < len(states):
            set_random_state(states[rank])


def lay_over(folder: Path, towers: nn.Module) -> None:
    """What a run had trained by a checkpoint of its own, over the original that they hold.

    Raises ValueError where it is not whole or is of another model.
    """
    if wrong := _damage(folder):
        raise ValueError(f"{folder} is not whole ({wrong}); name another checkpoint")
    weights, own = Tensors(folder / MODEL), dict(towers.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if not weights.shapes().items() <= shapes.items():
        raise ValueError(f"{folder} is of another model; see to model.name")
    with torch.no_grad():
        for name in weights:
            own[name].copy_(weights[name])


def is_saved(folder: Path) -> bool:
    """Whether a folder is such a checkpoint, whole or damaged, and not an exported model."""
    return (folder / MODEL).is_file()


class Tensors(Mapping[str, Tensor]):
    """A safetensors file, of which a tensor is read when it is asked for."""

    def __init__(self, path: Path):
        self._file = safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self}


def find(folder: Path) -> Saved | None:
    """The newest whole checkpoint of a run; damaged ones are passed over with a warning."""
    for found in sorted(whole(folder), reverse=True):
        if wrong := _damage(found):
            warnings.warn(f"{found} is not whole ({wrong}); an earlier one is taken", stacklevel=2)
            continue
        state = json.loads((found / STATE).read_text())
        skips = Skips()
        skips.used = state["used"]
        skips.reasons.update(state["reasons"])
        skips.bad.update({(shard, reason): count for shard, reason, count in state["bad"]})
        stream = StreamState(**state["stream"])
        before, scale = unpacked(state["before"]), state.get("scale", {})
        return Saved(found, stream.step, stream, before, skips, _losses(state), scale)
    return None


def _losses(state: dict) -> list[dict[str, float]]:
    if "windows" not in state:
        return state["losses"]
    # Of before: every process had its own.
    steps = zip(*state["windows"], strict=True)
    return [{name: fmean(own[name] for own in step) for name in step[0]} for step in steps]


def whole(folder: Path) -> list[Path]:
    """Those that were written to their end, whatever happened to them since.

    Not what somebody keeps beside them under a name of their own, as `step-best`: it would be taken
    for the newest, or removed.
    """
    return [one for one in folder.glob("step-*") if NAME.fullmatch(one.name) and one.is_dir()]


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        if set(FILES) - files.keys():
            return "its manifest leaves files out"
        for name, wanted in files.items():
            if sha256_of(folder / Path(name).name) != wanted:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}"
    return None
