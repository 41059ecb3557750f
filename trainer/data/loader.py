"""Loader workers: what each draws, in turn, and what stopped one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.util import Finalize
from typing import NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from trainer.system.failures import is_meant, traceback_of

PREFETCH = 4  # steps that each worker loads ahead
T = TypeVar("T")


@dataclass(frozen=True)
class Stopped:
    """What stopped a loader worker, for the parent to raise.

    The loader's own way makes of it an error whose message is a traceback.
    """

    message: str
    traceback: str
    is_the_users: bool  # to mend; of others the traceback is wanted

    @staticmethod
    def by(error: Exception) -> Stopped:
        is_the_users = isinstance(error, OSError) or (
            isinstance(error, ValueError) and is_meant(error)
        )
        return Stopped(str(error), traceback_of(error), is_the_users)

    def stop(self) -> NoReturn:
        whole = f"in a loader worker:\n{self.traceback}"
        if self.is_the_users:
            raise ValueError(self.message) from RuntimeError(whole)
        raise RuntimeError(whole)


def obey_parent_alone(is_let_go: Tensor, worker: int) -> None:
    """For a loader worker: who preempts a run tells all its processes, and its launcher tells them
    once more, but this one has to go on until the parent has saved."""
    parent = os.getppid()

    def leave_if_let_go(*_) -> None:
        if is_let_go or os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGTERM, leave_if_let_go)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def draw(steps: IterableDataset[T | Stopped], workers: int) -> Iterator[list[T]]:
    """The workers' parts of each step; together they are the rank's. workers: 0 for none.

    Raises ValueError for what the user can mend, wherever it was read.
    """
    is_let_go = torch.zeros((), dtype=torch.bool).share_memory_()
    # Also by a process that ends without closing this: it would wait for workers that do not.
    let_go = Finalize(None, is_let_go.fill_, (True,), exitpriority=100)
    loader = DataLoader(
        steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=partial(obey_parent_alone, is_let_go),
        generator=torch.Generator(),  # or it drew from a loss's own, at each start anew
    )
    # The loader asks its workers in turn, so the parts of one step come one after the other.
    stream = iter(loader)
    try:
        while parts := list(islice(stream, max(1, workers))):
            for part in parts:
                if isinstance(part, Stopped):
                    part.stop()
            yield parts
    finally:
        # Now: an error that is kept holds this frame, and garbage collection closes the workers'
        # queues in any order, then waits five seconds for each.
        let_go()
        del stream
