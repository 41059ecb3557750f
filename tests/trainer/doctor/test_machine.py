"""What a host lacks, and what to do about it."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.doctor.machine import driver_version, gpus, nearest, open_files, room, shared_memory

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="looks for missing GPUs")
KERNELS = {  # as the two kinds of NVIDIA's kernel module write it
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Thu Sep  9 2021": "470.82.01",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build": (
        "580.65.06"
    ),
}


@pytest.mark.parametrize("text", KERNELS)
def test_the_drivers_version_is_read(tmp_path, text):
    (tmp_path / "version").write_text(f"{text}\nGCC version:  gcc version 12.2.0 (Debian)\n")
    assert driver_version(tmp_path / "version") == KERNELS[text]


@WITHOUT_GPU
def test_no_driver_is_no_hindrance_but_said(tmp_path):
    (found,) = gpus(1, tmp_path / "none")
    assert found.level == "warn" and "no NVIDIA driver" in found.what


@WITHOUT_GPU
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.parametrize(
    ("driver", "mend"), [("418.40.04", "update the driver to"), ("999.10.01", "nvidia-smi")]
)
def test_a_driver_that_torch_cannot_use_is_told_with_its_mend(tmp_path, driver, mend):
    (tmp_path / "version").write_text(f"Kernel Module  {driver}  Thu")
    (found,) = gpus(1, tmp_path / "version")
    assert found.level == "fail" and f"finds no GPU with driver {driver}" in found.what
    assert mend in found.mend


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_compute_and_more_processes_than_there_are_is_a_mistake():
    many = torch.cuda.device_count() + 1
    levels = {one.what: one.level for one in gpus(many)}
    assert levels[f"{many} processes on {many - 1} GPUs"] == "fail"
    assert "ok" in levels.values()


@pytest.mark.parametrize("flag", ["true", "True", "1", "yes"])
def test_of_a_run_that_is_to_leave_the_gpus_alone_they_are_not_looked_at(
    tmp_path, monkeypatch, flag
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    (tmp_path / "version").write_text("Kernel Module  999.10.01  Thu")
    (found,) = gpus(torch.cuda.device_count() + 1, tmp_path / "version")
    assert found.level == "ok" and "on the CPU, as ACCELERATE_USE_CPU asks" in found.what


def test_too_little_shared_memory_is_told(tmp_path):
    (found,) = shared_memory(1, tmp_path)
    assert found.level == "ok"
    (found,) = shared_memory(10**9, tmp_path)
    assert found.level == "warn" and "--shm-size" in found.mend
    assert [one.level for one in shared_memory(1, tmp_path / "none")] == ["warn"]


def test_a_low_limit_of_open_files_is_told():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert [one.level for one in open_files(limit)] == ["ok"]
    (found,) = open_files(limit + 1)
    assert found.level == "warn" and f"ulimit -n {limit + 1}" in found.mend


def test_room_is_looked_for_where_the_folder_will_be_and_nothing_is_left(tmp_path):
    folder = tmp_path / "runs/names"
    assert nearest(folder) == tmp_path
    (found,) = room(folder, 1000)
    assert found.level == "ok" and str(tmp_path) in found.what
    (found,) = room(folder, 10**18)
    assert found.level == "fail" and "free some" in found.mend
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free, level", [(6 * 10**9, "warn"), (21 * 10**9, "ok")])
def test_little_room_is_no_failure_where_what_a_run_takes_is_not_known(
    tmp_path, monkeypatch, free, level
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    (found,) = room(tmp_path, None)
    assert found.level == level and "a run of ViT-L/14 takes about 20.00 GB" in found.what


def test_a_folder_that_cannot_be_written_to_is_told():
    where = Path("/proc") if os.geteuid() == 0 else Path("/")
    (found,) = room(where, 0)
    assert found.level == "fail" and f"{where} cannot be written to" in found.what
