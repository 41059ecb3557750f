"""Remote shards kept on a local disk, each downloaded once by whoever needs it first."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from trainer.data.remote import PATIENT, Patience, RemoteFile, Unreachable
from trainer.system.addresses import shown
from trainer.system.files import sync

CHUNK_BYTES = 8 << 20
_GIVEN_UP: set[str] = set()  # folders that were full or could not be written, in this process


def cached(url: str, folder: str, patience: Patience = PATIENT) -> str | None:
    """The path of a remote shard's copy, downloaded if it is not there yet; other processes wait.

    None where the folder is full or cannot be written, with one warning: then stream the shard.
    Raises Unreachable.
    """
    path = os.path.join(folder, cache_name(url))
    if os.path.exists(path):
        return path
    if folder in _GIVEN_UP:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
        while not os.path.exists(path):
            _download_if_nobody_does(url, path, patience)
    except Unreachable:
        raise
    except OSError as error:
        if not _GIVEN_UP:
            warnings.warn(
                f"{shown(url)}: cannot be kept in {folder}: {error.strerror or error}; shards "
                "that are not there are streamed, free some space or name another folder",
                stacklevel=2,
            )
        _GIVEN_UP.add(folder)
        return None
    return path


def cache_name(url: str) -> str:
    """Of the whole address, for a signature may decide what is sent; readable to its end."""
    readable = re.sub(r"[^\w.-]+", "_", shown(url).rpartition("/")[2])[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}-{readable}"


def _download_if_nobody_does(url: str, path: str, patience: Patience) -> None:
    """Else waits for that; then the file is there, or it is to be tried again."""
    partial = f"{path}.part"
    with open(partial, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a killed process holds it no longer
        if not _is_at(partial, lock):  # who held it has renamed or removed the file
            return
        try:
            if os.path.exists(path):  # finished just before we opened ours
                os.unlink(partial)
            else:
                _download(url, partial, patience)
                sync(Path(partial))  # it is never looked at again
                os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise


def _is_at(path: str, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _download(url: str, path: str, patience: Patience) -> None:
    with RemoteFile(url, patience=patience, chunk_bytes=CHUNK_BYTES) as remote:
        size = remote.size
        # Checkpoints may share the disk: do not fill it up to find out.
        if size is not None and size > shutil.disk_usage(os.path.dirname(path)).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open(path, "wb") as file:
            while data := remote.read(CHUNK_BYTES):
                file.write(data)
        if os.path.getsize(path) != (remote.tell() if size is None else size):
            raise OSError(errno.EIO, "what was written is not as long as what was sent")
