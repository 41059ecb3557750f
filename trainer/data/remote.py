"""Shards that lie elsewhere, read front to back.

What fails is tried again from the byte where it stopped, for as long as `Patience` says. Between
reads no connection is held where ranges can be asked for, and the next chunk is fetched meanwhile.
"""

from __future__ import annotations

import os
import random
import re
import time
import warnings
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from threading import Thread

from urllib3.exceptions import LocationValueError, MaxRetryError

from trainer.data.transports import Hopeless, Transport, open_transport
from trainer.system.addresses import shown

CHUNK_BYTES = 1 << 20  # a request; an open file holds up to two
READ_AHEAD_THREADS = 8  # a process
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # between two tries
WARN_AFTER_SECONDS = 5.0
PERMANENT = (FileNotFoundError, IsADirectoryError, PermissionError, LocationValueError)
Job = tuple[Future[bytearray], Transport, int, int]  # the bytes from one place up to another


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server before giving up."""

    seconds: float = 300.0  # since the last byte came
    timeout_seconds: float = 30.0  # of silence, until a request counts as failed


PATIENT = Patience()


class Unreachable(OSError):
    """A shard that cannot be read, or not as one file. Tells why, what to do, and no secret."""


class RemoteFile:
    """A remote file read forward from byte `start`, in the process that opened it.

    Nothing is asked for until it is wanted. Raises Unreachable; then it is of no more use.
    """

    def __init__(
        self,
        url: str,
        start: int = 0,
        patience: Patience = PATIENT,
        chunk_bytes: int = CHUNK_BYTES,
    ):
        self._url, self._patience, self._chunk_bytes = url, patience, chunk_bytes
        self._source = open_transport(url, patience.timeout_seconds, patience.seconds)
        self._chunk, self._chunk_start = bytearray(), start
        self._offset = start
        self._ahead: Future[bytearray] | None = None  # what follows the chunk

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the file."""
        pieces: list[memoryview] = []
        while size > 0:
            if self._offset >= self._chunk_start + len(self._chunk):
                self._load()
            place = self._offset - self._chunk_start
            piece = memoryview(self._chunk)[place : place + size]
            if not piece:
                break
            pieces.append(piece)
            self._offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def skip(self, num_bytes: int) -> None:
        """Forward. Chunks wholly skipped are not fetched where ranges can be asked for."""
        assert num_bytes >= 0
        self._offset += num_bytes

    def tell(self) -> int:
        return self._offset

    @property
    def size(self) -> int | None:
        """Bytes of the whole file; None where nobody tells, until its end is reached."""
        if self._source.size is None and not self._chunk:
            self._load()
        return self._source.size

    def close(self) -> None:
        if self._ahead:  # what a thread still reads is closed by it: we need not wait
            self._ahead.cancel()
            self._ahead.add_done_callback(lambda _: self._source.close())
        else:
            self._source.close()

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        """The chunk at the offset. The next is begun, unless it was skipping that led here."""
        start = follows = self._chunk_start + len(self._chunk)
        data = bytearray()
        ahead, self._ahead = self._ahead, None
        if ahead and not ahead.cancel():  # cancelled, if every thread is busy with another's
            data = ahead.result()
        if self._offset >= start + len(data):
            start, data = self._offset, bytearray()
        end = start + self._chunk_bytes
        _complete(data, self._source, start, end, self._patience, self._url)
        self._chunk, self._chunk_start = data, start
        is_last = self._source.size is not None and self._source.size <= end
        # A stream is not read ahead: the system's buffers do that.
        if start == follows and self._source.ranged and not is_last:
            self._ahead = _begin(self._source, end, end + self._chunk_bytes)


def _complete(
    data: bytearray, source: Transport, start: int, end: int, patience: Patience, url: str
) -> None:
    """To the bytes from `start` up to `end` or the end of the file; data: those that are there."""

    def is_complete() -> bool:
        return start + len(data) >= (end if source.size is None else min(end, source.size))

    num_failures, heard_at, warned = 0, time.monotonic(), False
    while not is_complete():
        had, why = len(data), "the answer ends too early"
        try:
            source.add(data, start + len(data), end)
        except Hopeless as error:
            raise Unreachable(f"{shown(url)}: {_without_secrets(str(error))}") from None
        except PERMANENT as error:
            raise Unreachable(
                f"{shown(url)}: {_said(error)}; see that the address is right and may be read"
            ) from None
        except Exception as error:
            why = _said(error)
        now = time.monotonic()
        if len(data) > had or is_complete():
            num_failures, heard_at = 0, now
            continue
        silent_seconds = now - heard_at
        left_seconds = patience.seconds - silent_seconds
        if left_seconds <= 0:
            raise Unreachable(
                f"{shown(url)}: given up after {silent_seconds:.0f} s without a byte: {why}; "
                "see that it can be read from this machine, then resume"
            )
        if silent_seconds > WARN_AFTER_SECONDS and not warned:
            warned = True
            warnings.warn(
                f"{shown(url)}: no byte for {silent_seconds:.0f} s: {why}; "
                f"trying for {left_seconds:.0f} s more",
                stacklevel=2,
            )
        time.sleep(min(_wait_seconds(num_failures), left_seconds))
        num_failures += 1


def _wait_seconds(num_failures: int) -> float:
    """None at first, then longer and longer; by chance, lest all lanes come back at once."""
    if num_failures == 0:
        return 0.0
    longest = min(FIRST_WAIT_SECONDS * 2.0 ** min(num_failures - 1, 10), LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def _said(error: Exception) -> str:
    if isinstance(error, MaxRetryError) and error.reason:
        error = error.reason
    text = _without_secrets(str(error))[:200]
    return text if type(error) is OSError else f"{type(error).__name__}: {text}"


def _without_secrets(text: str) -> str:
    """On one line, addresses without users, passwords and queries."""
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"://\S*@", "://", " ".join(text.split())))


# Reading ahead


def _begin(source: Transport, start: int, end: int) -> Future[bytearray]:
    future: Future[bytearray] = Future()
    _jobs(os.getpid()).put((future, source, start, end))
    return future


@cache
def _jobs(pid: int) -> SimpleQueue[Job]:
    """By process: a fork takes no thread along. concurrent.futures' own threads hold up an exit."""
    jobs: SimpleQueue[Job] = SimpleQueue()
    for _ in range(READ_AHEAD_THREADS):
        Thread(target=_work, args=(jobs,), name="shards-read-ahead", daemon=True).start()
    return jobs


def _work(jobs: SimpleQueue[Job]) -> None:
    while True:
        _try_once(*jobs.get())


def _try_once(future: Future[bytearray], source: Transport, start: int, end: int) -> None:
    if future.set_running_or_notify_cancel():
        data = bytearray()
        with suppress(Exception):  # who reads it goes on from there, and meets it again
            source.add(data, start, end)
        future.set_result(data)
