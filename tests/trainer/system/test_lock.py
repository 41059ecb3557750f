"""The lock on a run's folder, between real processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from trainer.system.lock import hold

HOLDING = """
import os, sys, time
from pathlib import Path
from trainer.system.lock import hold
hold(Path(sys.argv[1]))
if os.fork():  # a loader worker, who outlives its parent for a while
    print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, with a child, that has the lock of tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "run"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def test_two_processes_do_not_write_to_one_folder(holder, tmp_path):
    with pytest.raises(ValueError, match=rf"run is in use by process {holder.pid} on .+; wait"):
        hold(tmp_path / "run")
    os.close(hold(tmp_path / "another"))


def test_a_killed_process_leaves_the_folder_free_though_its_child_lives(holder, tmp_path):
    holder.kill()
    holder.wait()
    os.close(hold(tmp_path / "run"))


def test_a_folder_can_be_renamed_while_it_is_held(tmp_path):
    (tmp_path / "run").mkdir()
    lock = hold(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "run.1")
    assert not list((tmp_path / "run.1").iterdir())
    os.close(lock)
