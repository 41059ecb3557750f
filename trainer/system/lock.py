"""One run at a time in a folder: a lock that the kernel lifts when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems


def beside(folder: Path) -> Path:
    """The lock of a run's folder."""
    return folder.with_name(f".{folder.name}.lock")


def hold(folder: Path) -> int:
    """Locks a run's folder, there or not yet, for this process until it closes what it gets.

    Raises ValueError where another process, on whatever host, has it. The lock lies beside the
    folder, which may be renamed. It is not flock's, for two reasons: that is known on one host
    alone on some network file systems, and a loader worker, being a fork, would keep it for some
    seconds after its parent was killed.
    """
    path = beside(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}); see to it yourself that no other "
                f"run writes to {folder}",
                stacklevel=2,
            )
            return descriptor
        holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise ValueError(
            f"{folder} is in use by {holder or 'another process'}; wait until that ends, stop it, "
            "or name another folder: output=FOLDER"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor
