"""Files that are whole or as they were, and a disk that has no room for them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
MORE_SHARED_MEMORY = (
    "make it larger (docker: --shm-size 8g; Kubernetes: an emptyDir of medium Memory), or set "
    "data.workers=0"
)


class NotWritten(OSError):
    """A run that cannot keep what it learns; the message says what to do."""


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Written aside by `write`, put on the disk, then renamed. Gives the path."""
    aside = path.with_name(f".{path.name}.tmp")
    # A link there, as a folder from elsewhere may have, would be written through.
    aside.unlink(missing_ok=True)
    try:
        write(aside)
        sync(aside)
    except BaseException:
        aside.unlink(missing_ok=True)  # it may be what fills the disk
        raise
    return aside.replace(path)


def replace_text(path: Path, text: str) -> Path:
    return replace(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """A file or folder, so that it outlives a machine that goes down."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """No room on the disk or in the quota. Libraries in Rust have errors of their own for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)


def is_shared_memory_full(error: BaseException) -> bool:
    """No room in /dev/shm: the system's words are a full disk's, but to free some of that helps
    nobody. Where pages are missing, a worker dies of a bus error, which torch explains."""
    said = str(error)
    return "out of shared memory" in said or ("shared memory" in said and is_full(error))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def size_of(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
