"""The demo, launched as README says, held to what README says of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def world():
    command = [sys.executable, "-m", "trainer", "fictitious", "runs/world"]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def measured(name: str) -> tuple[dict, dict]:
    """The measures before and after a run of this configuration."""
    arguments = [
        "--config_file",
        "launch/cpu.yaml",
        "-m",
        "trainer",
        "train",
        f"configs/{name}.yaml",
    ]
    subprocess.run([*LAUNCH, *arguments], cwd=REPOSITORY, check=True)
    results = json.loads((REPOSITORY / "runs" / name / "results.json").read_text())
    return results["before"], results["after"]


@pytest.mark.parametrize(
    ("name", "most_found"), [("demo", 0.02), ("demo_names", 0.05), ("demo_faces", 0.05)]
)
def test_64_people_are_forgotten_and_all_else_is_kept(world, name, most_found):
    before, after = measured(name)
    assert before["identity_inference/forget/tpr"] >= 0.98
    assert after["identity_inference/forget/tpr"] <= most_found
    for group, share in (("unseen", 0.97), ("replayed", 0.98)):
        kept = f"identity_inference/{group}/tpr_11"
        assert after[kept] >= share * before[kept]
    assert after["identity_inference/unknown/tpr"] <= 0.03
    for task in ("colour", "shape"):
        accuracy = f"zero_shot/{task}/accuracy"
        assert abs(after[accuracy] - before[accuracy]) <= 0.01
