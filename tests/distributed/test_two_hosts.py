"""Two hosts on one machine: two network namespaces, a cable between them, and the cable cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, demo_without_attack
from tests.distributed import namespaces
from tests.distributed.test_strategies import SMALL, assert_measures, assert_same, trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not namespaces.are_allowed(), reason=namespaces.NEEDED),
]
TIMEOUT_SECONDS = 20


@pytest.fixture(scope="module")
def world(small_world) -> Path:
    demo_without_attack(small_world, "strategies")
    trained(small_world, "one-host", "cpu.yaml", [])
    return small_world


def started(folder: Path, name: str, file: str) -> subprocess.Popen:
    run = ["train", "configs/strategies.yaml", f"output=runs/{name}"]
    environment = {
        "PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable,
        "LAUNCH_OPTIONS": "--mixed_precision no", "TWO_HOSTS": "forgetting",
        "PET_SHUTDOWN_TIMEOUT": "5",
    }  # fmt: skip
    return subprocess.Popen(
        [REPOSITORY / "launch/two_hosts.sh", REPOSITORY / "launch" / file, *run, *SMALL,
         f"timeout_seconds={TIMEOUT_SECONDS}"],
        cwd=folder, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_hosts_give_the_result_of_one(world, strategy):
    process = started(world, f"{strategy}-hosts", f"{strategy}.yaml")
    text = process.communicate(timeout=200)[0]
    assert process.returncode == 0, text
    assert_same(world, f"{strategy}-hosts", "one-host")
    assert "zero_shot/colour/accuracy" in assert_measures(world, f"{strategy}-hosts", "one-host")


def wait_for_save(process: subprocess.Popen, world: Path, name: str) -> None:
    saved = world / "runs" / name / "checkpoints/step-00000010"
    while not saved.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.parametrize("gone", [0, 1])
def test_when_a_host_is_gone_the_other_says_so_in_time_and_a_restart_goes_on(world, gone):
    """The first holds what the processes find each other by."""
    name, left = f"without-{gone}", 1 - gone
    process = started(world, name, "ddp.yaml")
    wait_for_save(process, world, name)
    on_it = subprocess.run(
        ["ip", "netns", "pids", f"forgetting-{gone}"], check=True, capture_output=True, text=True
    )
    for pid in map(int, on_it.stdout.split()):
        with suppress(ProcessLookupError):  # it ended with its launcher
            os.kill(pid, signal.SIGKILL)
    text = process.communicate(timeout=3 * TIMEOUT_SECONDS)[0]
    assert process.returncode != 0
    assert f"[host {left}] process {left} lost the others" in text
    text = started(world, name, "ddp.yaml").communicate(timeout=200)[0]
    assert "goes on after step" in text
    assert_same(world, name, "one-host")


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_cut_off_from_each_other_both_say_so_in_time_and_go_on_when_mended(world, strategy):
    name = f"{strategy}-cut"
    process = started(world, name, f"{strategy}.yaml")
    wait_for_save(process, world, name)
    subprocess.run(["ip", "-n", "forgetting-1", "link", "set", "eth0", "down"], check=True)
    text = process.communicate(timeout=3 * TIMEOUT_SECONDS)[0]
    assert process.returncode != 0
    for host in (0, 1):
        assert f"[host {host}] process {host} lost the others" in text
    text = started(world, name, f"{strategy}.yaml").communicate(timeout=200)[0]
    assert "goes on after step" in text
    assert_same(world, name, "one-host")
