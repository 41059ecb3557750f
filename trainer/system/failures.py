"""What fails beside the training: told in one line, known to all ranks, and gone on after."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from trainer.system.files import is_full

T = TypeVar("T")
WORKING, FAILED = 0, 1  # what ranks tell each other
_listening: dist.ProcessGroup | None = None  # while `on_all_ranks` is at work


class Failed(RuntimeError):
    """On every rank, of work that raised on one of them; the message is the cause."""


class _FailedElsewhere(BaseException):
    """Leaves the work in which another rank failed; nothing in there is to catch it."""


def cause(error: BaseException) -> str:
    """One line: the kind of error, what it says, where it came up.

    It says nothing where Python's words might quote a name that was looked up or read: those of a
    `raise` in the code are meant for a reader, and so are the system's and torch's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    is_meant = bool(frames) and (frames[-1].line or "").startswith("raise ")
    is_meant = is_meant and not isinstance(error, LookupError)
    words = ""
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror
    elif is_meant or isinstance(error, RuntimeError) or is_full(error):
        words = next(iter(str(error).splitlines()), "")
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"{said} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else said


def is_of_the_others(error: BaseException) -> bool:
    """A process or host that does not answer; gloo has no error class of its own."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__.startswith("Dist") or "gloo" in str(error).lower()
    )


def on_all_ranks(work: Callable[[], T]) -> T:
    """What `work` gives; a collective. Raises Failed on every rank where it raises on one.

    Each rank must hear of it (`hear`) before each collective of the work: a rank that failed does
    not come to the next one, and the others would wait for it. In a collective that does not hear,
    such as the forward of sharded weights, they wait for `timeout_seconds`, then the run ends.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        try:
            return work()
        except Exception as error:
            raise Failed(cause(error)) from error
    group = _group_beside(dist.group.WORLD)
    own: Exception | None = None
    result: list[T] = []
    try:
        with _listening_on(group):
            result = [work()]
            hear()  # whether it is done everywhere
    except _FailedElsewhere:
        pass
    except Exception as error:
        if is_of_the_others(error):
            raise
        own = error
        try:
            _tell(FAILED, group)
        except RuntimeError as lost:  # they waited elsewhere, and are gone
            raise type(lost)(f"{cause(error)}; {lost}") from error
    else:
        return result[0]
    causes = [""] * dist.get_world_size()
    dist.all_gather_object(causes, cause(own) if own else "", group=group)
    found = [(rank, one) for rank, one in enumerate(causes) if one]
    rank, first = found[0]
    alone = f", on process {rank} alone" if len(found) == 1 else ""
    raise Failed(first + alone) from own


def hear() -> None:
    """Leaves the work that `on_all_ranks` does where another rank failed in it."""
    if _listening is not None and _tell(WORKING, _listening) == FAILED:
        raise _FailedElsewhere


def _tell(state: int, group: dist.ProcessGroup) -> int:
    """The worst of all ranks'."""
    worst = torch.tensor(state)
    dist.all_reduce(worst, dist.ReduceOp.MAX, group=group)
    return int(worst)


@contextmanager
def _listening_on(group: dist.ProcessGroup) -> Iterator[None]:
    global _listening
    _listening = group
    try:
        yield
    finally:
        _listening = None


@lru_cache(maxsize=1)
def _group_beside(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """On CPUs and apart from the work's, whose collectives a rank that failed may have left."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    return group
