"""Trackers that may fail and leave the run as it is: metrics.jsonl has all that they are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from trainer.configuration.config import Config
from trainer.system.addresses import masked, shown
from trainer.system.failures import cause

NAME = "clip-unlearn"  # of the project that the runs are in


class Trackers:
    """accelerate's own, on the main process. One that raises is told of by `say` and left out."""

    def __init__(self, config: Config, accelerator: Accelerator, say: Callable[[str], None]):
        self._accelerator, self._say = accelerator, say
        # Offline unless the user says otherwise: nothing leaves the machine by default.
        os.environ.setdefault("WANDB_MODE", "offline")
        # Online, what is not committed would go along: a roster may be in the user's repository.
        os.environ.setdefault("WANDB_DISABLE_GIT", "true")
        os.environ.setdefault("COMET_AUTO_LOG_GIT_METADATA", "false")
        os.environ.setdefault("COMET_AUTO_LOG_GIT_PATCH", "false")
        # A server that went away must not hold the machines: what it did not get is on the disk.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "120")  # seconds
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        # Whole: wandb's service stays in the folder that its first run was started in.
        folder = str(config.output.absolute())
        options = {
            "wandb": {"name": config.output.name, "dir": folder},
            # Else it would commit what is not committed, and may push it.
            "dvclive": {"dir": f"{folder}/dvclive", "save_dvc_exp": False},
        }
        told = _flat(masked(config.resolved()))
        started: list[Any] = []
        wanted = accelerator.log_with
        for one in wanted:  # each alone, that the others start where one does not
            accelerator.log_with, accelerator.trackers = [one], []
            with _arguments_masked():
                works = self._works(str(one), accelerator.init_trackers, NAME, told, options)
            started += accelerator.trackers if works else []
        accelerator.trackers = started
        for missing in {*config.trackers} - {*map(str, wanted)}:
            self._leave_out(missing, "it is not installed")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._accelerator.trackers = []

    def _each(self, do: Callable[[Any], object]) -> None:
        trackers = self._accelerator.trackers
        self._accelerator.trackers = [one for one in trackers if self._works(one.name, do, one)]

    def _works(self, name: str, do: Callable[..., object], *told: Any) -> bool:
        try:
            do(*told)
        except Exception as error:  # each has errors of its own
            self._leave_out(name, cause(error))
            return False
        return True

    def _leave_out(self, name: str, why: str) -> None:
        self._say(f"tracker {name} is left out ({why}); metrics.jsonl has all that it would have")


@contextmanager
def _arguments_masked() -> Iterator[None]:
    """Some keep the command line: an override may hold a signed address."""
    arguments = sys.argv
    parts = [one.partition("=") for one in arguments]
    sys.argv = ["".join([name, equals, shown(value)]) for name, equals, value in parts]
    try:
        yield
    finally:
        sys.argv = arguments


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str | int | float]:
    """Nested options as `data.lanes: 64`: trackers take no trees."""
    flat: dict[str, str | int | float] = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}.")
        else:
            flat[path] = value if isinstance(value, (str, int, float)) else str(value)
    return flat
