"""A run that is told to stop: it saves at the end of the step, on all processes, and can go on."""

from __future__ import annotations

import signal
from time import monotonic
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill
EXIT_CODE = 75  # "temporary failure, try again" of sysexits.h
MARKER = "interrupted"  # in the run's folder; launchers swallow exit codes


class Interruption:
    """Notes the signals while it is entered, and the time; a second signal changes nothing.

    minutes: after which the run stops by itself; None: when it is done.
    """

    def __init__(self, accelerator: Accelerator, minutes: float | None = None):
        self._accelerator = accelerator
        self._is_told = False
        self._ends_at = None if minutes is None else monotonic() + 60 * minutes

    def __enter__(self) -> Interruption:
        self._handlers = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._handlers.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_told = True

    def agree(self, losses: Tensor) -> tuple[bool, bool]:
        """Whether any process is to stop, and whether any has a loss that is not finite.

        losses: (n,), this process's. A collective where there are several, and the step's one
        GPU-CPU sync point: between forward and backward, where the least is lost by it.
        """
        is_late = self._ends_at is not None and monotonic() > self._ends_at
        is_asked = torch.tensor(float(self._is_told or is_late), device=losses.device)
        found = torch.stack([is_asked, (~losses.isfinite()).any().float()])
        if self._accelerator.num_processes > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        stop, is_lost = found.tolist()
        return bool(stop), bool(is_lost)
