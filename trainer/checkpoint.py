"""Where a run stands, on disk: whole or absent, and found again by itself.

A checkpoint is copied to host memory within the step and written by a thread: aside, hashed, then
renamed. Only the main process writes; so far for strategies in which every process holds the whole
model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.api import Measures
from trainer.skips import Skips
from trainer.steps import Positions, StreamState

MODEL, OPTIMIZER, RANDOM, STATE, MANIFEST = (
    "student.safetensors", "optimizer.pt", "random.pt", "state.json", "manifest.json",
)  # fmt: skip
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint that was found and verified."""

    folder: Path
    step: int
    stream: StreamState
    before: Measures  # measured at the start of the run
    skips: Skips  # of all processes, up to there
    windows: list[list[dict[str, float]]]  # of each process: losses that are not logged yet

    def window(self, rank: int, device: torch.device) -> list[dict[str, Tensor]]:
        own = self.windows[rank] if rank < len(self.windows) else []
        return [
            {name: torch.tensor(value, device=device) for name, value in one.items()} for one in own
        ]

    def load_into(self, student: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
        """student: not wrapped. Raises ValueError where it is of another model."""
        tensors = load_file(self.folder / MODEL)
        try:
            student.load_state_dict(tensors)
            optimizer.load_state_dict(torch.load(self.folder / OPTIMIZER, weights_only=True))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.folder} is of another model or optimizer ({str(error).splitlines()[0]}); "
                "set checkpoint.resume=never to start anew"
            ) from None
        states = torch.load(self.folder / RANDOM, weights_only=True)
        if rank < len(states):
            torch.set_rng_state(states[rank])


def find(folder: Path) -> Saved | None:
    """The newest whole checkpoint of a run; damaged ones are passed over with a warning."""
    for found in sorted(folder.glob("step-*"), reverse=True):
        if found.suffix == ".tmp" or not found.is_dir():
            continue
        if wrong := _damage(found):
            warnings.warn(f"{found} is not whole ({wrong}); an earlier one is taken", stacklevel=2)
            continue
        state = json.loads((found / STATE).read_text())
        skips = Skips()
        skips.used = state["used"]
        skips.reasons.update(state["reasons"])
        skips.bad.update({(shard, reason): count for shard, reason, count in state["bad"]})
        stream = StreamState(**state["stream"])
        return Saved(found, stream.step, stream, state["before"], skips, state["windows"])
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        if {MODEL, OPTIMIZER, RANDOM, STATE} - files.keys():
            return "its manifest leaves files out"
        for name, wanted in files.items():
            if _digest(folder / Path(name).name) != wanted:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}"
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


class Checkpoints:
    """A run's checkpoints: the last `keep` of them, the older removed when a newer is whole."""

    def __init__(self, folder: Path, every: int, keep: int, accelerator: Accelerator):
        assert accelerator.distributed_type in WHOLE
        self._folder, self._keep, self._accelerator = folder, keep, accelerator
        self._every = every
        # A single thread: one checkpoint at a time, and training waits for it no sooner.
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def save(
        self,
        step: int,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: Mapping[str, str],
        positions: Positions,
        before: Measures,
        skips: Skips,
        window: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Called by all ranks. student: not wrapped. window: losses that are not logged yet."""
        losses = [{name: value.item() for name, value in one.items()} for one in window]
        shares = gather_object([(positions, skips, losses, torch.get_rng_state())])
        if not self._accelerator.is_main_process:
            return
        self.wait()
        everywhere = Skips()
        for _, own, _, _ in shares:
            everywhere += own
        all_positions = {
            name: sorted(lane for own, *_ in shares for lane in own[name]) for name in positions
        }
        state = {
            "stream": vars(StreamState(step, dict(order), all_positions)),
            "before": before,
            "used": everywhere.used,
            "reasons": everywhere.reasons,
            "bad": [[*place, count] for place, count in everywhere.bad.items()],
            "windows": [own for _, _, own, _ in shares],
        }
        model = {name: _copied(tensor) for name, tensor in student.state_dict().items()}
        moments = _on_cpu(optimizer.state_dict())
        random = [own for *_, own in shares]
        self._writing = self._writer.submit(self._write, step, model, moments, random, state)

    def _write(
        self, step: int, model: dict[str, Tensor], moments: Any, random: list, state: dict
    ) -> None:
        folder = self._folder / f"step-{step:08d}"
        aside = folder.with_suffix(".tmp")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(model, aside / MODEL)
            torch.save(moments, aside / OPTIMIZER)
            torch.save(random, aside / RANDOM)
            (aside / STATE).write_text(json.dumps(state))
            files = {name: _digest(aside / name) for name in (MODEL, OPTIMIZER, RANDOM, STATE)}
            manifest = {"version": version("clip-unlearn"), "torch": torch.__version__}
            (aside / MANIFEST).write_text(json.dumps(manifest | {"files": files}, indent=2))
            for path in (*aside.iterdir(), aside):
                _sync(path)
            shutil.rmtree(folder, ignore_errors=True)  # one that was found damaged
            aside.rename(folder)
            _sync(self._folder)
        except Exception as error:  # each library has its own for a full disk
            shutil.rmtree(aside, ignore_errors=True)
            warnings.warn(
                f"the checkpoint of step {step} was not written ({_first_line(error)}); the one "
                "before it stays, the run goes on: free some space",
                stacklevel=2,
            )
            return
        whole = sorted(one for one in self._folder.glob("step-*") if one.suffix != ".tmp")
        for old in whole[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    def wait(self) -> None:
        """Until what was begun is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _copied(value)
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(one) for one in value)
    return deepcopy(value)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
