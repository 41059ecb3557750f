"""launch/slurm.sbatch on a real Slurm: two nodes of one CPU on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, demo_without_attack
from tests.distributed.slurm import cluster, is_installed
from tests.distributed.test_strategies import SMALL, TWO, assert_weights, trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not is_installed(), reason="needs root, slurmctld, slurmd and munge"
    ),
]
# Enough to be stopped twice; with loader workers, whom Slurm tells as well.
LONG = ["steps=150", "data.workers=1"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
        try:
            environment = stack.enter_context(cluster(Path(folder)))
        except RuntimeError as error:
            pytest.skip(f"Slurm's daemons do not come up on this machine: {error}")
        yield environment


class Job:
    """launch/slurm.sbatch with the small demo, queued in its folder."""

    def __init__(self, folder: Path, slurm: dict[str, str], name: str, *overrides: str):
        self._folder, self._environment = folder, slurm | {
            "PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
            "LAUNCH_OPTIONS": "--mixed_precision no",
        }  # fmt: skip
        batch = ["sbatch", "--parsable", "--gpus-per-node=0", "--cpus-per-task=1"]
        script = [str(REPOSITORY / "launch/slurm.sbatch"), str(REPOSITORY / "launch/ddp.yaml")]
        run = ["train", "configs/strategies.yaml", *SMALL, f"output=runs/{name}", *overrides]
        self.number = self.slurms(*batch, *script, *run)
        self.folder = folder / "runs" / name

    def slurms(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def preempt(self) -> None:
        """By a job of the partition that goes before, which takes a second."""
        self.slurms("sbatch", "--partition=high", "--nodes=2", "--wrap=sleep 1")

    def told(self) -> str:
        path = self._folder / f"slurm-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def has(self, state: str) -> bool:
        return state in self.slurms("scontrol", "show", "job", self.number)

    def has_saved(self, step: int) -> bool:
        found = (self.folder / "checkpoints").glob("step-*[0-9]")
        return max((int(one.name[5:]) for one in found), default=0) >= step

    def until(self, holds: Callable[[], bool], seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < ends_at, self.told()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def world(small_world) -> Path:
    demo_without_attack(small_world, "strategies")
    return small_world


def test_preempted_and_told_to_stop_it_queues_itself_again_and_ends_with_the_same_weights(
    world, slurm
):
    trained(world, "uninterrupted", "ddp.yaml", TWO, *LONG)
    job = Job(world, slurm, "queued", *LONG)
    job.until(lambda: job.has_saved(10), 300)
    job.preempt()
    job.until(lambda: "is queued again" in job.told(), 180)
    first = int(job.told().partition("left after step ")[2].partition(";")[0])
    job.until(lambda: job.has_saved(first + 10), 400)
    job.slurms("scancel", "--signal=USR1", job.number)  # as Slurm does before the time is over
    job.until(lambda: job.told().count("is queued again") == 2, 180)
    job.until(lambda: job.has("JobState=COMPLETED"), 600)

    assert job.has("Restarts=2")
    assert f"goes on after step {first}" in job.told() and first < 150
    assert_weights(world, "queued", "uninterrupted", atol=0)
    for life in range(3):
        for node in range(2):
            logs = world / f"runs/queued.logs/{job.number}-{life}/node-{node}"
            assert len(list(logs.rglob("stdout.log"))) == 1  # of the node's one rank


def test_preempted_while_it_starts_it_queues_itself_again(world, slurm):
    """Its processes know of no signal yet, and are ended by it."""
    job = Job(world, slurm, "early", "steps=4")
    logs = world / f"runs/early.logs/{job.number}-0"
    job.until(lambda: len(list(logs.rglob("stdout.log"))) == 2, 180)  # both ranks are started
    job.preempt()
    job.until(lambda: "preempted before there was anything to save" in job.told(), 180)
    job.until(lambda: job.has("JobState=COMPLETED"), 400)
    assert job.has("Restarts=1") and (job.folder / "results.json").exists()


def test_cancelled_it_saves_and_is_not_queued_again(world, slurm):
    job = Job(world, slurm, "cancelled", *LONG)
    job.until(lambda: job.has_saved(10), 300)
    job.slurms("scancel", job.number)
    job.until(lambda: not (job.has("JobState=RUNNING") or job.has("JobState=COMPLETING")), 120)
    assert "left after step" in job.told() and "is queued again" not in job.told()
    assert job.has("JobState=CANCELLED") and job.has("Restarts=0")


def test_what_is_to_begin_anew_does_so_once_and_goes_on_when_it_is_queued_again(world, slurm):
    job = Job(world, slurm, "anew", *LONG, "checkpoint.resume=never")
    job.until(lambda: job.has_saved(10), 300)
    job.slurms("scancel", "--signal=USR1", job.number)
    job.until(lambda: job.has("JobState=COMPLETED"), 600)
    assert job.has("Restarts=1") and "goes on after step" in job.told()
    assert not job.folder.with_name("anew.1").exists()


def test_it_may_use_all_memory_of_its_nodes_where_slurm_ends_who_has_more_than_a_default(
    world, slurm
):
    job = Job(world, slurm, "large", "steps=4")
    job.until(lambda: job.has("JobState=COMPLETED") or job.has("JobState=FAILED"), 300)
    assert job.has("JobState=COMPLETED"), job.told()
    assert job.has("mem=128G")  # of two nodes
