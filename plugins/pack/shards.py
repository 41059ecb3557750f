"""Pictures checked by threads, and folders of shards: whole or absent, the same bytes each time."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from trainer import BadSample, progress

PICTURES = ("jpg", "jpeg", "png", "webp", "gif")  # extensions that the trainer reads
MAX_PICTURE_BYTES = 200_000_000  # of a file; it reads no larger one
AHEAD = 64  # pictures in work or waiting for their turn

Item = TypeVar("Item")
Result = TypeVar("Result")


def vacant(out: Path) -> Path:
    """Where OUT really lies. Raises FileExistsError where something is there."""
    out = Path(os.path.realpath(out))
    if os.path.lexists(out) and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} exists and is not empty; remove it or name another folder")
    if not next(one for one in out.parents if one.exists()).is_dir():
        raise NotADirectoryError(f"{out} lies in a file, not a folder; name another")
    if os.path.ismount(out):  # nothing can be renamed to it
        raise FileExistsError(f"{out} is a mount point; name a folder in it: {out / 'packed'}")
    return out


@contextmanager
def written_aside(out: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder that becomes `out` at the end, or goes. Raises ValueError if it can't be."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{out.name}.packing-", dir=out.parent) as aside:
            folder = Path(aside, out.name)
            folder.mkdir(mode)
            yield folder
            folder.rename(out)
    except OSError as error:  # of writing: what is read raises ValueError
        raise ValueError(f"{out} cannot be written: {error.strerror}") from None


class Shards:
    """00000.tar and so on in a folder, each of up to `size` samples."""

    def __init__(self, folder: Path, size: int):
        self.count = 0  # of shards, the one at hand included
        self.folder, self._size = folder, size
        self._room = 0  # in the one at hand
        self._tar: tarfile.TarFile | None = None

    def keep_together(self, samples: int) -> None:
        """Begin a new shard unless so many have room in this one."""
        if self._room < samples:
            self._room = 0

    def add(self, key: str, parts: Mapping[str, bytes]) -> int:
        """Write a sample's parts, by extension. Returns the shard's number."""
        if not self._room:
            self._begin()
        assert self._tar is not None
        for extension, data in parts.items():
            # Its time and owner stay 0: the same bytes every time.
            entry = tarfile.TarInfo(f"{key}.{extension}")
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))
        self._room -= 1
        return self.count - 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    def _begin(self) -> None:
        self.close()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{self.count:05d}.tar"
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.count, self._room = self.count + 1, self._size


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], total: int
) -> Generator[Result, None, None]:
    """What `work` makes of each picture, in their order, under a progress bar; to be closed.

    Threads work a little ahead, and are enough: a decoder lets go of Python's lock. To be run in
    the main thread.
    """
    bar = progress(total=total, desc="packing", unit="picture")
    # Each of torch's copies would take all cores, and so would each of as many threads.
    threads = ThreadPoolExecutor(os.cpu_count(), "", torch.set_num_threads, (1,))
    with bar, interrupts_held_back() as let_through, threads as pool:
        running: deque[Future[Result]] = deque()

        def next_result() -> Result:
            result = running.popleft().result()
            bar.update()
            return result

        for item in items:
            let_through()
            running.append(pool.submit(work, item))
            if len(running) >= AHEAD:
                yield next_result()
        while running:
            let_through()
            yield next_result()
        let_through()


@contextmanager
def interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Ctrl-C is raised by the next call of what this gives, nowhere else.

    One that came while the pool's lock is taken would leave it so: its threads, and who waits for
    them, would wait for ever.
    """
    came: list[int] = []

    def let_through() -> None:
        if came:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, before)


def extension_of(name: str) -> str | None:
    """As it is written; None where it is not a picture's."""
    extension = os.path.splitext(name)[1][1:]
    return extension if extension.lower() in PICTURES else None


def told(skipped: Mapping[str, int]) -> str:
    """What was skipped, by reason."""
    reasons = [f"{reason} ({skipped[reason]})" for reason in sorted(skipped) if skipped[reason]]
    return f"skipped: {', '.join(reasons) or 'nothing'}"


def read_picture(path: str) -> bytes:
    """Raises BadSample, which does not tell the path."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_PICTURE_BYTES:
                raise BadSample("picture file too large")
            return file.read()
    except OSError:
        raise BadSample("unreadable file") from None
