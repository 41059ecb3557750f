"""A run that is told to stop: it saves at the end of the step, on all processes, and can go on.

Its launcher's end tells one that was launched alone; one of several ends with it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path
from time import monotonic
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill
EXIT_CODE = 75  # "temporary failure, try again" of sysexits.h
MARKER = "interrupted"  # in the run's folder; launchers swallow exit codes
SEVERAL, ANY = "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"  # what launchers set
LAUNCHER = re.compile(b"launch|torch")  # in the command line of one
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_launcher() -> None:
    """When what launched this process ends, it does too (Linux): it would train on beside the run
    that takes its place. Who starts a process without a launcher may leave it alone.

    One of several is killed, since it could agree with nobody on where to save. One that was
    launched alone is told to stop: accelerate passes no signal on to it, and is ended by its own.
    """
    if not sys.platform.startswith("linux") or not {SEVERAL, ANY} & os.environ.keys():
        return
    number = signal.SIGKILL if SEVERAL in os.environ else signal.SIGTERM
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    # Killed before this line, it is replaced as parent by the first process, which launches
    # nothing but in a container of its own.
    if os.getppid() == 1 and not LAUNCHER.search(Path("/proc/1/cmdline").read_bytes()):
        sys.exit("what launched this process is gone; start it again")


class Asked(Exception):
    """To stop, between two evaluations."""


class Interruption:
    """Notes the signals while it is entered, and the time; a second signal changes nothing.

    What comes before the first step, while the model is loaded and measured, waits for its end.
    minutes: after which the run stops by itself, from here on; None: when it is done.
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

    def agree(self, losses: Tensor, has_failed: bool) -> tuple[bool, bool, bool]:
        """Whether any process is to stop, has a loss that is not finite, could not save.

        losses: (n,), and has_failed, this process's. A collective where there are several, and the
        step's one GPU-CPU sync point: between forward and backward, where the least is lost by it.
        """
        told = [float(self._is_asked), float(has_failed)]
        lost = (~losses.isfinite()).any().float()
        found = torch.cat([torch.tensor(told, device=losses.device), lost[None]])
        if self._accelerator.num_processes > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        is_asked, is_unsaved, is_lost = map(bool, found.tolist())
        return is_asked, is_lost, is_unsaved

    def check(self) -> None:
        """Raises Asked on all processes where any is to stop. A collective."""
        if any(gather_object([self._is_asked])):
            raise Asked

    def lift_limit(self) -> None:
        """Of time; signals are noted still."""
        self._ends_at = None

    @property
    def _is_asked(self) -> bool:
        return self._is_told or self._ends_at is not None and monotonic() > self._ends_at
