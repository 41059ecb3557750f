"""kill -9 of one process, of both, of the launcher, of all: what is left ends, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import psutil
import pytest

from tests.conftest import REPOSITORY, demo_without_attack, kill_all
from tests.trainer.runs.test_checkpoint import SMALL, finished, launched, same_result
from tests.warm_python import warm_python
from trainer.runs.saved import find
from trainer.system.interruption import MARKER

RANKS = 2
MOST_STEPS = 3  # of one start in a chain of kills, before it is killed at the latest
PATIENCE_SECONDS = 60  # until all that is left of a killed run has ended; far less is needed
ENDLESS = "steps=100000"
STARTING_SECONDS = 8.0  # from the launcher to the first steps, about


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    return [one for one in launcher.children() if "trainer" in one.cmdline()]


def kill_one(process: subprocess.Popen, rng: Random) -> None:
    """One of the ranks, where they are started yet."""
    with suppress(psutil.NoSuchProcess):
        if ranks := ranks_of(psutil.Process(process.pid)):
            rng.choice(ranks).kill()
            return
    process.kill()


def kill_launcher(process: subprocess.Popen, rng: Random) -> None:
    process.kill()


def kill_everything(process: subprocess.Popen, rng: Random) -> None:
    with suppress(psutil.NoSuchProcess):
        kill_all(process)


def kill_ranks(process: subprocess.Popen, rng: Random) -> None:
    """All of them; the launcher sees it."""
    with suppress(psutil.NoSuchProcess):
        ranks = ranks_of(psutil.Process(process.pid))
        for one in ranks or [process]:
            one.kill()


KILLS: list[Callable[[subprocess.Popen, Random], None]] = [
    kill_one, kill_launcher, kill_everything, kill_ranks,
]  # fmt: skip


def killed(process: subprocess.Popen, kill: Callable, rng: Random) -> str:
    """What it printed; all that it had started has ended by itself."""
    with suppress(psutil.NoSuchProcess):
        left = psutil.Process(process.pid).children(recursive=True)
    kill(process, rng)
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_SECONDS)
    for one in alive:
        one.kill()
    assert not alive, "orphans that had gone on"
    return process.communicate(timeout=PATIENCE_SECONDS)[0]


def newest_step(folder: Path) -> int:
    """By the names alone: it is asked for every few milliseconds."""
    return max((int(one.name[5:13]) for one in folder.glob("step-*[0-9]")), default=0)


def wait_for_moment(process: subprocess.Popen, checkpoints: Path, kind: str, rng: Random) -> None:
    """While it starts or at its first steps; some time after a step; or inside a save."""
    first, ends_at = newest_step(checkpoints), time.monotonic() + rng.uniform(0, STARTING_SECONDS)
    while process.poll() is None:
        done = newest_step(checkpoints) - first
        if done >= MOST_STEPS or kind == "start" and time.monotonic() >= ends_at:
            return
        if kind == "step" and done:
            time.sleep(rng.uniform(0, 0.2))
            return
        if kind == "save" and done and list(checkpoints.glob("*.tmp")):
            time.sleep(rng.uniform(0, 0.05))
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate()[0])


def assert_survives(world: Path, num_kills: int, seed: int, steps: int) -> None:
    """A run that is killed again and again ends with the result of one that was left alone; when
    one of its processes was killed the others say so."""
    few = [f"steps={steps}", "checkpoint.every=1"]
    name, whole = f"killed-{num_kills}", f"whole-{num_kills}"
    checkpoints = world / "runs" / name / "checkpoints"
    rng, num_cut_saves = Random(seed), 0
    for i in range(num_kills):
        kind = ("save", "step", "start")[i // len(KILLS) % 3]
        process = launched(world, name, *few, ranks=RANKS)
        wait_for_moment(process, checkpoints, kind, rng)
        text = killed(process, KILLS[i % len(KILLS)], rng)
        if KILLS[i % len(KILLS)] is kill_one and kind != "start":
            (line,) = [one for one in text.splitlines() if "lost the others: " in one]
            assert "goes on from the last checkpoint" in line and process.returncode != 0
        num_cut_saves += bool(list(checkpoints.glob("*.tmp")))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # whole or absent, never damaged
            assert bool(find(checkpoints)) == bool(newest_step(checkpoints))
    step = newest_step(checkpoints)
    assert 0 < step < steps and num_cut_saves
    assert f"goes on after step {step}" in finished(world, name, *few, ranks=RANKS)
    finished(world, whole, *few, ranks=RANKS)
    same_result(world, name, whole)


@pytest.fixture(scope="module")
def world(small_world) -> Path:
    demo_without_attack(small_world, "small")
    return small_world


def test_killed_inside_a_save_in_three_ways_a_run_ends_with_the_weights_of_one_left_alone(world):
    assert_survives(world, num_kills=3, seed=0, steps=16)


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_thirty_moments_a_run_ends_with_the_weights_of_one_left_alone(world):
    assert_survives(world, num_kills=30, seed=1, steps=100)


def test_a_second_run_in_the_same_folder_is_refused_on_all_ranks_and_the_first_goes_on(world):
    options, warm = ["checkpoint.every=1", ENDLESS], warm_python()
    process = launched(world, "shared", *options, ranks=RANKS, python=warm)
    wait_for_moment(process, world / "runs/shared/checkpoints", "step", Random(0))
    second = launched(world, "shared", *options, ranks=RANKS, python=warm)
    text = second.communicate(timeout=120)[0]
    assert second.returncode != 0 and text.count("runs/shared is in use by process ") == 1
    assert process.poll() is None and not (world / "runs/shared.1").exists()
    process.terminate()
    process.communicate(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_what_accelerate_launched_alone_saves_when_its_launcher_is_ended(world, number):
    """accelerate passes no signal on to it, and is ended by its own. It alone is warm."""
    name = f"alone-{number.name}"
    process = subprocess.Popen(
        [warm_python(), "-m", "accelerate.commands.launch", "--config_file",
         REPOSITORY / "launch/cpu.yaml", "-m", "trainer", "train", "configs/small.yaml", *SMALL,
         f"output=runs/{name}", ENDLESS, "checkpoint.every=1"],
        cwd=world, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    folder = world / "runs" / name
    wait_for_moment(process, folder / "checkpoints", "step", Random(0))
    killed(process, lambda *_: process.send_signal(number), Random(0))
    assert newest_step(folder / "checkpoints") == int((folder / MARKER).read_text())
