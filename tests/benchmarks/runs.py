"""Worlds drawn and configurations trained by the commands that README tells people to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def config(name: str) -> str:
    return str(REPOSITORY / "configs" / f"{name}.yaml")


def draw(folder: Path, *world: str) -> None:
    """In this folder, as its command has it."""
    command = [sys.executable, "-m", "trainer", "fictitious", *world]
    subprocess.run(command, cwd=folder, check=True)


def train(folder: Path, file: str, *overrides: str) -> None:
    """In this folder, on the CPU, by two processes."""
    _launched(folder, "train", file, *overrides)


def evaluate(folder: Path, file: str, checkpoint: Path, *overrides: str) -> None:
    _launched(folder, "evaluate", file, "--checkpoint", str(checkpoint), *overrides)


def _launched(folder: Path, *command: str) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    on_cpu = os.environ | {"ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launch, str(REPOSITORY / "launch/cpus.yaml"), "-m", "trainer", *command],
        cwd=folder, check=True, env=on_cpu,
    )  # fmt: skip
