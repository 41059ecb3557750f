"""The demo, launched as README says, held to what README says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.distributed import namespaces

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def world():
    command = [sys.executable, "-m", "trainer", "fictitious", "runs/world"]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def measured(launch: list, name: str, *arguments: str, **environment: str) -> dict:
    """What a run of this configuration measured on the CPU, before and after."""
    output = f"runs/{name}_tested"
    command = [*launch, "train", f"configs/{name}.yaml", f"output={output}", *arguments]
    on_cpu = {"ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | on_cpu | environment)
    results = json.loads((REPOSITORY / output / "results.json").read_text())
    return {moment: results[moment] for moment in ("before", "after")}


def assert_forgotten_and_kept(found: dict, most_found: float) -> None:
    before, after = found["before"], found["after"]
    # What the shipped CLIP has to know and to do.
    groups = ("forget", "replayed", "unseen")
    assert sum(before[f"identity_inference/{group}/people"] for group in groups) >= 256
    assert all(before[f"identity_inference/{group}/tpr"] >= 0.98 for group in groups)
    assert before["zero_shot/colour/accuracy"] >= 0.95
    assert before["zero_shot/shape/accuracy"] >= 0.80
    assert after["identity_inference/forget/tpr"] <= most_found
    for group, share in (("unseen", 0.97), ("replayed", 0.98)):
        kept = f"identity_inference/{group}/tpr_11"
        assert after[kept] >= share * before[kept]
    assert after["identity_inference/unknown/tpr"] <= 0.03
    for task in ("colour", "shape"):
        accuracy = f"zero_shot/{task}/accuracy"
        assert abs(after[accuracy] - before[accuracy]) <= 0.01


@pytest.mark.parametrize(
    ("name", "most_found"), [("demo", 0.02), ("demo_names", 0.05), ("demo_faces", 0.05)]
)
def test_64_people_are_forgotten_and_all_else_is_kept(world, name, most_found):
    launch = [*LAUNCH, "--config_file", "launch/cpus.yaml", "-m", "trainer"]
    assert_forgotten_and_kept(measured(launch, name), most_found)


@pytest.mark.skipif(not namespaces.are_allowed(), reason=namespaces.NEEDED)
def test_zero2_on_two_hosts_measures_what_it_measures_on_one(world):
    processes = {"PYTHON": sys.executable}
    options = ["--mixed_precision", "no"]
    zero2 = ["--config_file", "launch/zero2.yaml", "--num_processes", "2", *options]
    one = measured([*LAUNCH, *zero2, "-m", "trainer"], "demo", **processes)
    hosts = ["launch/two_hosts.sh", "launch/zero2.yaml"]
    two = measured(hosts, "demo", LAUNCH_OPTIONS=" ".join(options), **processes)
    assert two == one
    assert_forgotten_and_kept(two, 0.02)
