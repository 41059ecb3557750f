"""Trackers that raise: real ones, of accelerate and of wandb."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from tests.conftest import REPOSITORY
from tests.warm_python import warm_python
from trainer.configuration.config import load_config
from trainer.runs.tracking import Trackers

FEW = [
    "evaluations={}", "model.random_weights=true", "data.workers=0", "data.lanes=8",
    *(f"objectives.{name}.batch_size=8" for name in ("keep", "names", "faces")),
    "steps=4", "log_every=1", "optimizer.warmup_steps=2", "output=runs/tracked",
]  # fmt: skip
METRICS = "runs/tracked/metrics.jsonl"


class Kept(GeneralTracker):
    """Raises at the method it is told, keeps what it is given until then."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, raises_at: str = ""):
        super().__init__()
        self.raises_at, self.kept, self.ended = raises_at, [], False

    @property
    def tracker(self):
        return self.kept

    def start(self):
        self._may_raise("start")

    def store_init_configuration(self, values):
        self.configuration = values

    def log(self, values, step=None, **_):
        if step == 2:
            self._may_raise("log")
        self.kept.append((step, values))

    def finish(self):
        self._may_raise("finish")
        self.ended = True

    def _may_raise(self, method):
        if method == self.raises_at:
            raise ConnectionError("no network")


@pytest.fixture
def config(small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    return lambda *more: load_config(REPOSITORY / "configs/demo.yaml", [*FEW, *more])


@pytest.mark.parametrize(
    ("raises_at", "kept"), [("start", []), ("log", [1]), ("finish", [1, 2, 3])]
)
def test_a_tracker_that_raises_is_told_of_once_and_the_others_go_on(config, raises_at, kept):
    broken, whole, told = Kept(raises_at), Kept(), []
    accelerator = Accelerator(cpu=True, log_with=[broken, whole])
    trackers = Trackers(config(), accelerator, told.append)
    for step in (1, 2, 3):
        trackers.log({"loss": 1 / step}, step)
    trackers.finish()
    accelerator.end_training()
    assert [step for step, _ in broken.kept] == kept
    assert [step for step, _ in whole.kept] == [1, 2, 3] and whole.ended
    assert whole.configuration["data.lanes"] == 8
    (line,) = told
    assert "is left out (ConnectionError: no network (test_tracking.py:" in line
    assert line.endswith("metrics.jsonl has all that it would have")


def test_trackers_are_told_addresses_without_their_secrets(config):
    kept = Kept()
    shards = "https://me:s3cr3t@h/0.tar?sig=s3cr3t"
    command = "pipe:curl -H 'Key: s3cr3t' https://h/1.tar"
    sources = json.dumps([shards, {"shards": [command], "weight": 0.5}])
    Trackers(config(f"data.shards={sources}"), Accelerator(cpu=True, log_with=[kept]), print)
    told = kept.configuration["data.shards"]
    assert "https://h/0.tar" in told and "pipe:curl ... https://h/1.tar" in told
    assert "s3cr3t" not in str(kept.configuration)


def test_no_tracker_sees_the_secrets_of_an_override(config, monkeypatch):
    class Sees(Kept):
        def start(self):
            super().start()
            self.arguments = list(sys.argv)

    given = ["trainer", "train", "a.yaml", "data.shards=https://me:s3cr3t@h/0.tar?sig=s3cr3t"]
    monkeypatch.setattr(sys, "argv", given)
    sees = Sees()
    Trackers(config(), Accelerator(cpu=True, log_with=[sees]), print)
    assert sees.arguments == [*given[:3], "data.shards=https://h/0.tar"] and sys.argv == given


def test_wandb_waits_for_a_server_that_went_away_for_minutes_alone(config, monkeypatch):
    for name in ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES"):
        monkeypatch.delenv(name, raising=False)
    import wandb

    assert wandb.Settings().finish_timeout == 0  # without end
    Trackers(config(), Accelerator(cpu=True, log_with=[Kept()]), print).finish()
    given = wandb.Settings()
    given.update_from_env_vars(os.environ)
    assert given.finish_timeout == 120 and given.finish_timeout_raises


def test_wandb_sends_nothing_and_looks_at_no_repository_unless_told_to(config, monkeypatch):
    names = "WANDB_MODE", "WANDB_DISABLE_GIT"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    import wandb

    Trackers(config(), Accelerator(cpu=True, log_with=[Kept()]), print).finish()
    given = wandb.Settings()
    given.update_from_env_vars(os.environ)
    assert given.mode == "offline" and given.disable_git

    for name, value in zip(names, ("online", "false")):
        monkeypatch.setenv(name, value)
    Trackers(config(), Accelerator(cpu=True, log_with=[Kept()]), print).finish()
    given.update_from_env_vars(os.environ)
    assert given.mode == "online" and not given.disable_git


def test_without_network_or_not_installed_trackers_leave_the_run_as_it_is(
    small_world,
):
    """In a process of its own: wandb keeps the settings of its first session."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "online", "WANDB_API_KEY": 40 * "0",
        "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2",
    }  # fmt: skip
    run = [str(REPOSITORY / "configs/demo.yaml"), *FEW, "trackers=[wandb,mlflow]"]
    done = subprocess.run(
        [warm_python(), "-m", "trainer", "train", *run],
        cwd=small_world, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stderr
    for tracker, why in (("wandb", "CommError: "), ("mlflow", "it is not installed")):
        assert told.count(f"tracker {tracker} is left out ({why}") == 1
    rows = [json.loads(line) for line in (small_world / METRICS).open()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
