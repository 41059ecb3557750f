"""launch/slurm.sbatch on a real Slurm: two nodes of one CPU on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        cluster(Path(folder)) as environment,
    ):
        yield environment


def until(holds: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    ends_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends_at, told()
        time.sleep(0.1)


def test_preempted_and_told_to_stop_it_queues_itself_again_and_ends_with_the_same_weights(
    small_world, slurm
):
    demo_without_attack(small_world, "strategies")
    trained(small_world, "uninterrupted", "ddp.yaml", TWO, *LONG)
    environment = slurm | {
        "PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "LAUNCH_OPTIONS": "--mixed_precision no", "OUTPUT": "runs/queued",
    }  # fmt: skip

    def slurms(*command: str) -> str:
        done = subprocess.run(
            command, cwd=small_world, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    batch = ["sbatch", "--parsable", "--gpus-per-node=0", "--cpus-per-task=1"]
    script = [str(REPOSITORY / "launch/slurm.sbatch"), str(REPOSITORY / "launch/ddp.yaml")]
    job = slurms(*batch, *script, "train", "configs/strategies.yaml", *SMALL, *LONG)
    told = small_world / f"slurm-{job}.out"

    def text() -> str:
        return told.read_text() if told.exists() else ""

    def has_saved(step: int) -> bool:
        found = (small_world / "runs/queued/checkpoints").glob("step-*[0-9]")
        return max((int(one.name[5:]) for one in found), default=0) >= step

    until(lambda: has_saved(10), 120, text)
    urgent = slurms("sbatch", "--parsable", "--partition=high", "--nodes=2", "--wrap=sleep 1")
    until(lambda: "is queued again" in text(), 60, text)
    first = int(text().partition("left after step ")[2].partition(";")[0])
    until(lambda: has_saved(first + 10), 180, text)
    slurms("scancel", "--signal=USR1", job)  # as Slurm does before the time is over
    until(lambda: text().count("is queued again") == 2, 60, text)
    until(lambda: "JobState=COMPLETED" in slurms("scontrol", "show", "job", job), 240, text)

    assert "Restarts=2" in slurms("scontrol", "show", "job", job)
    assert "JobState=COMPLETED" in slurms("scontrol", "show", "job", urgent)
    assert f"goes on after step {first}" in text() and first < 150
    assert_weights(small_world, "queued", "uninterrupted", atol=0)
    for life in range(3):
        for node in range(2):
            logs = small_world / f"runs/queued.logs/{job}-{life}/node-{node}"
            assert len(list(logs.rglob("stdout.log"))) == 1  # of the node's one rank
