"""Whether a host is fit: its GPUs and their driver, shared memory, open files, room on the disk."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import torch

from trainer.doctor.diagnosis import Finding, fail, ok, warn
from trainer.strategies.launching import is_cpu_asked_for
from trainer.system.files import MORE_SHARED_MEMORY, size_of

DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")
# The oldest driver that serves a CUDA release line (NVIDIA's minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# A process's loader workers hold some steps' pictures ready: 6 x 512 x 224 x 224 x 3 bytes, where
# no configuration says how many of which size.
SHARED_BYTES = 460_000_000
OPEN_FILES = 1024  # a process
LARGE_RUN_BYTES = 20_000_000_000  # two checkpoints of ViT-L/14 and the model
BFLOAT16 = (8, 0)  # the compute capability that multiplies in it


def gpus(num_processes: int, driver_file: Path = DRIVER) -> Iterator[Finding]:
    """num_processes: of this host, of which each wants a GPU where there are any."""
    if is_cpu_asked_for():
        yield ok("a run trains on the CPU, as ACCELERATE_USE_CPU asks")
        return
    driver = driver_version(driver_file)
    built_for = torch.version.cuda
    if torch.cuda.is_available():
        yield from _working_gpus(num_processes, driver)
    elif driver is None:
        yield warn(
            "no NVIDIA driver: a run trains on the CPU",
            "if this host has GPUs, install their driver, or give the container the GPUs "
            "(docker: --gpus all)",
        )
    elif built_for is None:
        yield fail(
            f"driver {driver} is here, but torch {torch.__version__} is built without CUDA",
            "install torch and torchvision for CUDA (pytorch.org/get-started)",
        )
    else:
        oldest = OLDEST_DRIVER.get(int(built_for.split(".")[0]), 0)
        is_old = int(driver.split(".")[0]) < oldest
        yield fail(
            f"torch {torch.__version__} for CUDA {built_for} finds no GPU with driver {driver}",
            f"update the driver to {oldest} or later, or install torch for an older CUDA"
            if is_old
            else "see that nvidia-smi shows one here, and CUDA_VISIBLE_DEVICES does not hide it",
        )


def driver_version(file: Path) -> str | None:
    """As `580.65.06`; None where no driver is loaded."""
    try:
        found = re.search(r"\s(\d{3,}(?:\.\d+)+)\s", file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _working_gpus(num_processes: int, driver: str | None) -> Iterator[Finding]:
    count = torch.cuda.device_count()
    wrong = []
    for device in range(count):
        try:
            one = torch.ones(64, 64, device=f"cuda:{device}")
            assert (one @ one)[0, 0].item() == 64
        except (RuntimeError, AssertionError) as error:
            wrong.append(device)
            yield fail(
                f"GPU {device} does not compute: {(str(error).splitlines() or ['wrong sum'])[0]}",
                "leave it out (CUDA_VISIBLE_DEVICES), or install torch for this kind of GPU",
            )
    kinds = Counter(torch.cuda.get_device_name(device) for device in range(count))
    shown = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    if not wrong:
        yield ok(f"{shown}; CUDA {torch.version.cuda}, driver {driver or 'unknown'}")
    if len(kinds) > 1:
        yield warn(f"GPUs of several kinds: {shown}", "all wait for the slowest in each step")
    if num_processes > count:
        yield fail(
            f"{num_processes} processes on {count} GPUs",
            f"launch {count} a host (--num_processes is of all hosts together)",
        )
    if any(torch.cuda.get_device_capability(device) < BFLOAT16 for device in range(count)):
        yield warn("a GPU here does not multiply in bfloat16", "launch with --mixed_precision no")


def shared_memory(
    num_processes: int, folder: Path = SHARED_MEMORY, bytes_each: int = SHARED_BYTES
) -> Iterator[Finding]:
    """Through it loader workers hand pictures over; where it is full the run ends."""
    wanted = num_processes * bytes_each
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    what = f"{folder} has {size_of(free)} free"
    if wanted:
        what += f", {num_processes} processes may want {size_of(wanted)}"
    yield warn(what, MORE_SHARED_MEMORY) if free < wanted else ok(what)


def open_files(wanted: int = OPEN_FILES) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < wanted:
        yield warn(f"a process may open {limit} files", f"allow {wanted} (ulimit -n {wanted})")
    else:
        yield ok(
            f"a process may open {'any number of' if limit == resource.RLIM_INFINITY else limit} "
            "files"
        )


def room(folder: Path, wanted: int | None) -> Iterator[Finding]:
    """Whether a run could write there. wanted: bytes that it will take, roughly; None where that
    is not known: too little for a large model is then a warning."""
    there = nearest(folder)
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield fail(
            f"{there} cannot be written to: {error.strerror}",
            "see to its rights and its disk, or set output to another folder",
        )
        return
    free = shutil.disk_usage(there).free
    if wanted is None:
        says, takes, wanted = warn, "a run of ViT-L/14 takes about", LARGE_RUN_BYTES
    else:
        says, takes = fail, "a run takes about"
    what = f"{there} has {size_of(free)} free, {takes} {size_of(wanted)}"
    if free < wanted:
        yield says(what, "free some, lower checkpoint.keep, or set output to another disk")
    else:
        yield ok(what)


def nearest(folder: Path) -> Path:
    """The folder itself or, where it is not there yet, the one that it will be made in."""
    folder = folder.resolve()
    return next(one for one in (folder, *folder.parents) if one.is_dir())
