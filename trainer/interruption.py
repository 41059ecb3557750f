"""A run that is told to stop: it saves at the end of the step, on all processes, and can go on."""

from __future__ import annotations

import signal
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill
EXIT_CODE = 75  # "temporary failure, try again" of sysexits.h
MARKER = "interrupted"  # in the run's folder; launchers swallow exit codes


class Interruption:
    """Notes the signals while it is entered; a second one changes nothing."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._is_asked = False

    def __enter__(self) -> Interruption:
        self._handlers = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._handlers.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True

    def is_asked(self) -> bool:
        """On any process; the same answer on all. A collective where there are several."""
        if self._accelerator.num_processes == 1:
            return self._is_asked
        asked = torch.tensor(float(self._is_asked), device=self._accelerator.device)
        return bool(self._accelerator.reduce(asked, "sum") > 0)  # a GPU-CPU sync point
