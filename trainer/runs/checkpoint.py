"""Where a run stands, on disk: whole or absent, and found again by itself.

A checkpoint is copied to host memory within the step and written by a thread: aside, hashed, then
renamed. The main process alone writes; what is spread over ranks is sent to it as it is copied, so
that the run can go on under any strategy, on any number of processes.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file
from torch import Tensor

from trainer.configuration.sections import CheckpointConfig
from trainer.data.skips import Skips
from trainer.data.steps import Positions, StreamState
from trainer.measures import Measures, packed
from trainer.runs.saved import (
    CONFIG,
    FILES,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RANDOM,
    STATE,
    whole,
)
from trainer.strategies.pieces import put_together
from trainer.strategies.spread import Spread
from trainer.system.failures import cause
from trainer.system.files import NotWritten, is_full, sha256_of, sync
from trainer.system.randomness import random_state
from trainer.system.versions import code_version


class Checkpoints:
    """A run's checkpoints: the last few of them, the older removed when a newer is whole.

    config: of the run, kept with each. newest: what the run goes on from, None where it began.
    """

    def __init__(
        self,
        folder: Path,
        options: CheckpointConfig,
        spread: Spread,
        accelerator: Accelerator,
        config: str,
        newest: Path | None,
    ):
        self._folder, self._options, self._accelerator = folder, options, accelerator
        self._spread, self._config, self._newest = spread, config, newest
        self._code = code_version() if accelerator.is_main_process else {}
        self._begun = newest.name if newest else None  # the last, written or being written
        self._has_diverged = False
        # A single thread: one checkpoint at a time, and training waits for it no sooner.
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self.failure: str | None = None  # of one not written; known to the process that writes
        self._host: dict[str, Tensor] = {}
        self.held_up: list[float] = []  # seconds of the steps that saved

    def due(self, step: int) -> bool:
        return self._options.every is not None and step % self._options.every == 0

    def has(self, step: int) -> bool:
        """Whether the last that was begun is of this step."""
        return self._begun == _name(step)

    def save(
        self,
        step: int,
        order: Mapping[str, str],
        positions: Positions,
        before: Measures,
        skips: Skips,
        window: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Called by all ranks. window: losses that are not logged yet."""
        started_at = perf_counter()
        self._begun = _name(step)
        losses = []
        if window:
            names, means = means_over_ranks(window, self._accelerator)
            losses = [dict(zip(names, one, strict=True)) for one in means.tolist()]
        shares = gather_object([(positions, skips, random_state())])
        self.wait()
        weights = put_together(self._spread.weights(), self._host)
        moments = put_together(self._spread.moments(), self._host)
        if self._accelerator.is_main_process:
            everywhere = Skips()
            for _, own, _ in shares:
                everywhere += own
            all_positions = {
                name: sorted(lane for own, *_ in shares for lane in own[name]) for name in positions
            }
            state = {
                "stream": vars(StreamState(step, dict(order), all_positions)),
                "before": packed(before),
                "used": everywhere.used,
                "reasons": everywhere.reasons,
                "bad": [[*place, count] for place, count in everywhere.bad.items()],
                "losses": losses,
                "scale": self._spread.scale(),
            }
            random = [own for *_, own in shares]
            self._writing = self._writer.submit(self._write, step, weights, moments, random, state)
        self.held_up.append(perf_counter() - started_at)

    def _write(
        self,
        step: int,
        weights: dict[str, Tensor],
        moments: dict[str, Tensor],
        random: list,
        state: dict,
    ) -> None:
        folder = self._folder / _name(step)
        aside = folder.with_suffix(".tmp")
        if name := first_not_finite(weights):
            # Their gradient was not, or the update was too large: the loss before it was finite.
            self._has_diverged = True
            self.failure = (
                f"the checkpoint of step {step} was not written: {name} is not finite any more; "
                "lower optimizer.lr or the objectives' weights"
            )
            return
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(weights, aside / MODEL)
            save_file(moments, aside / OPTIMIZER)
            kept = io.BytesIO()  # torch's own writer hides why it failed
            torch.save(random, kept)
            (aside / RANDOM).write_bytes(kept.getbuffer())
            (aside / STATE).write_text(json.dumps(state))
            (aside / CONFIG).write_text(self._config, encoding="utf-8")
            files = {name: sha256_of(aside / name) for name in FILES}
            manifest = {"code": self._code, "torch": torch.__version__}
            (aside / MANIFEST).write_text(json.dumps(manifest | {"files": files}, indent=2))
            for path in (*aside.iterdir(), aside):
                sync(path)
            shutil.rmtree(folder, ignore_errors=True)  # one that was found damaged
            aside.rename(folder)
            sync(self._folder)
        except Exception as error:  # each library has its own for a full disk
            shutil.rmtree(aside, ignore_errors=True)
            mend = "free some space" if is_full(error) else "mend that"
            self.failure = f"the checkpoint of step {step} was not written: {cause(error)}; {mend}"
            return
        self._newest = folder
        found = sorted(whole(self._folder))
        done = found.index(folder)
        # What is newer was found damaged when the run went on from before it.
        for other in found[: max(0, done + 1 - self._options.keep)] + found[done + 1 :]:
            shutil.rmtree(other, ignore_errors=True)

    def newest(self) -> Path | None:
        """The last that was written or gone on from, as the process that writes knows it."""
        self.wait()
        return self._newest

    def wait(self) -> None:
        """Until what was begun is written, by the process that writes."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def settle(self) -> None:
        """Waits for what was begun. A collective: raises NotWritten on all ranks where that, or one
        before, could not be written."""
        newest, message = self.newest(), None
        if self.failure:
            message = self.failure
            if not self._has_diverged:
                place = f"from {newest}" if newest else "from the start, there is no checkpoint"
                message += f", then the same command goes on {place}"
        (message,) = broadcast_object_list([message])
        if message:
            raise NotWritten(message)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def means_over_ranks(
    window: Sequence[Mapping[str, Tensor]], accelerator: Accelerator
) -> tuple[list[str], Tensor]:
    """The names of the losses, and each step's means over all ranks, (steps, names); a
    collective."""
    names = list(window[0])
    stacked = torch.stack([torch.stack([losses[name] for name in names]) for losses in window])
    return names, accelerator.reduce(stacked, "mean")


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of one that holds a NaN or Inf."""
    return next((name for name, one in tensors.items() if not one.isfinite().all()), None)
