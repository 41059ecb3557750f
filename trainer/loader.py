"""Loader workers: what each draws, in turn, and what stopped one."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NoReturn, TypeVar

from torch.utils.data import DataLoader, IterableDataset

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
        told = "".join(traceback.format_exception(error))
        return Stopped(str(error), told, isinstance(error, (ValueError, OSError)))

    def stop(self) -> NoReturn:
        whole = f"in a loader worker:\n{self.traceback}"
        if self.is_the_users:
            raise ValueError(self.message) from RuntimeError(whole)
        raise RuntimeError(whole)


def outlive_first_sigterm() -> None:
    """For a loader worker: who preempts a run tells all its processes, and this one has to go on
    until the parent has saved. Its own shutdown tells it again."""
    told = count(1)

    def leave_at_second(*_) -> None:
        if next(told) > 1:
            os._exit(0)

    signal.signal(signal.SIGTERM, leave_at_second)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def draw(steps: IterableDataset[T | Stopped], workers: int) -> Iterator[list[T]]:
    """The workers' parts of each step; together they are the rank's. workers: 0 for none.

    Raises ValueError for what the user can mend, wherever it was read.
    """
    prefetch = PREFETCH if workers else None
    loader = DataLoader(steps, batch_size=None, num_workers=workers, prefetch_factor=prefetch)
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
        del stream
