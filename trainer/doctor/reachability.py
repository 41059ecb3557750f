"""Whether the launched processes reach each other: by the launcher's store, by real all-reduces,
and by files.

All waiting ends.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads

import torch
import torch.distributed as dist

from trainer.doctor.diagnosis import Finding, fail, ok
from trainer.doctor.machine import nearest
from trainer.doctor.peers import Peers
from trainer.strategies.launching import is_cpu_asked_for

NUMBERS = 1 << 20  # of an all-reduce: 4 MB
SYNC_SECONDS = 5.0  # until a network file system shows a new file
PROBE = "doctor's probe"  # the name of a thread


def unanswered(error: dist.DistError, patience: float) -> Finding:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return fail(
        f"{where} does not answer within {patience:g} s ({str(error).splitlines()[0][:100]})",
        "see that --main_process_ip and --main_process_port name host 0 on every host, and that "
        "its firewall lets the port through",
    )


def backends() -> tuple[str, ...]:
    """By which a run's processes would meet."""
    uses_gpus = torch.cuda.is_available() and not is_cpu_asked_for()
    return ("gloo", "nccl") if uses_gpus else ("gloo",)


def all_reduce(peers: Peers, backend: str) -> Finding:
    """A real one, among all: how long it took, or what went wrong for this process."""
    process = peers.process
    # Else NCCL's own watchdog ends the process before anything is told.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    device = torch.device("cuda", process.local_rank) if backend == "nccl" else torch.device("cpu")

    def seconds() -> float:
        try:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(backend, peers.store),
                rank=process.rank,
                world_size=process.ranks,
                timeout=timedelta(seconds=peers.patience),
            )
            for _ in range(2):  # the first connects
                numbers = torch.full((NUMBERS,), process.rank + 1.0, device=device)
                started_at = time.perf_counter()
                dist.all_reduce(numbers)
                total = numbers[-1].item()  # waits for the device
            took = time.perf_counter() - started_at
        finally:
            if dist.is_initialized():  # else the next backend is refused
                dist.destroy_process_group()
        wanted = process.ranks * (process.ranks + 1) / 2
        if total != wanted:
            raise RuntimeError(f"the sum was {total}, not {wanted}")
        return took

    try:
        # Longer than the group's own patience, which tells more.
        took = within(1.5 * peers.patience, seconds)
    except (RuntimeError, TimeoutError, ValueError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return fail(
            f"process {process.rank} cannot all-reduce by {backend}: {cause}", _mend(backend)
        )
    return ok(f"{backend}: {process.ranks} processes add up 4 MB in {1000 * took:.1f} ms")


def _mend(backend: str) -> str:
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    if chosen := os.environ.get(variable):
        here = ", ".join(name for _, name in socket.if_nameindex())
        return f"{variable} is {chosen}: name the interface that leads to the others, of {here}"
    own = _own_address()
    if own.startswith("127."):
        name = socket.gethostname()
        return (
            f"{name} resolves to {own} here, where the others cannot reach it: set {variable} to "
            "the interface that leads to them, or mend /etc/hosts"
        )
    return f"set {variable} to the interface that leads to the others; see to the firewall between"


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"  # what libraries fall back to


def within(seconds: float, work: Callable[[], float]) -> float:
    """What it returns or raises, or TimeoutError: then it goes on in a thread, see `is_hung`."""
    result: list[float] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, name=PROBE, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not result:
        raise TimeoutError(f"no end within {seconds:g} s")
    return result[0]


def is_hung() -> bool:
    """Whether a probe still waits, in a library that nothing wakes: the process cannot end in
    order."""
    return any(thread.name == PROBE for thread in enumerate_threads())


@contextmanager
def shared_file(peers: Peers, folder: Path) -> Iterator[list[Finding]]:
    """What this host sees of a file that the first process keeps in its folder meanwhile.

    To be left when all have looked.
    """
    if peers.process.rank:
        yield list(_seen(peers, nearest(folder))) if peers.process.local_rank == 0 else []
        return
    path = nearest(folder) / f".doctor-{secrets.token_hex(8)}"
    try:
        path.write_text(path.name)
    except OSError:  # told by `room`
        peers.store.set("file", "")
        yield []
        return
    peers.store.set("file", path.name)
    try:
        yield []
    finally:
        path.unlink(missing_ok=True)


def _seen(peers: Peers, folder: Path) -> Iterator[Finding]:
    name = (peers.wait("file", 2 * peers.patience) or b"").decode()
    if not name:
        return
    ends_at = time.monotonic() + min(peers.patience, SYNC_SECONDS)
    while time.monotonic() < ends_at:
        with suppress(OSError):
            if (folder / name).read_text() == name:
                yield ok(f"the first host's files are seen in {folder}")
                return
        time.sleep(0.1)
    yield fail(
        f"a file of the first host's is not seen in {folder}",
        "start all hosts in the same folder of a file system that they share, or set output to "
        "one: else a run cannot go on from its checkpoints",
    )
