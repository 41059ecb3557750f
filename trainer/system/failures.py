"""What fails beside the training: told in one line, known to all ranks, and gone on after."""

from __future__ import annotations

import os
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
TRACEBACK = "CLIP_UNLEARN_TRACEBACK"  # in the environment: shows all, names as well
WORKING, FAILED = 0, 1  # what ranks tell each other
_listening: dist.ProcessGroup | None = None  # while `on_all_ranks` is at work


class Failed(RuntimeError):
    """On every rank, of work that raised on one of them; the message is the cause."""


class _FailedElsewhere(BaseException):
    """Leaves the work in which another rank failed; nothing in there is to catch it."""


def is_meant(error: BaseException) -> bool:
    """Whether what it says is meant for a reader, as the words of a `raise` in the code are.

    Python's own might quote a name that was looked up or read, and so might who raises a KeyError.
    """
    frames = traceback.extract_tb(error.__traceback__)
    is_raised = bool(frames) and (frames[-1].line or "").startswith("raise ")
    return is_raised and not isinstance(error, LookupError)


def cause(error: BaseException) -> str:
    """One line: the kind of error, what it says where that quotes no name, where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    words = next(iter(_words(error).splitlines()), "")
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"{said} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else said


def _words(error: BaseException) -> str:
    """What it says; nothing where it might quote a name. The system's and torch's quote none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if is_meant(error) or isinstance(error, RuntimeError) or is_full(error):
        return str(error)
    return ""


def traceback_of(error: BaseException) -> str:
    """Of an error and what led to it the files, lines and functions, as Python shows them; what
    they say where that quotes no name. All of it where the environment asks for that."""
    if os.environ.get(TRACEBACK):
        return "".join(traceback.format_exception(error))
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\nwhich led to\n\n".join(_frames_of(one) for one in reversed(chain))


def _frames_of(error: BaseException) -> str:
    # Without the lines' text, in which a name may be written.
    frames = [
        (one.filename, one.lineno or 0, one.name, "")
        for one in traceback.extract_tb(error.__traceback__)
    ]
    shown = "".join(traceback.format_list(frames))
    words = _words(error) or (str(error) and f"(may quote a name; {TRACEBACK}=1 shows what)")
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"Traceback (most recent call last):\n{shown}{said}\n"


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
