"""Memory does not grow with the people, but for their rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, picture, write_shard

RUN = """
model: {name: ViT-B-32}
data: {shards: clean.tar, workers: 0, lanes: 16}
objectives:
  keep: {kind: preserve, batch_size: 32, towers: [text]}
  names: {kind: name_to_person, batch_size: 64, roster: people.csv}
  faces: {kind: face_to_neutral, batch_size: 16, roster: people.csv, target: text, hue: 0}
optimizer: {lr: 1}
steps: 5
"""
DRAW = """
import json, re, sys
from itertools import islice
from trainer.configuration.config import load_config
from trainer.data.preview import KeysBuilder
from trainer.data.loader import draw
from trainer.data.steps import Steps
config = load_config("run.yaml")
steps = Steps(config.objectives, config.data, 0, 0, 1, lambda: KeysBuilder(config.objectives))
seen = set()
for parts in islice(draw(steps, 0), int(sys.argv[1])):
    seen |= {identity for _, _, identity in parts[0].rows["names"] if identity}
# Not ru_maxrss: that of a child begins with its parent's.
(peak,) = re.findall("VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps([len(seen), int(peak) / 1024]))
"""


TRAIN = """
import json, re, sys
from trainer.configuration.config import load_config
from trainer.train import train
model = ["model.name=local-dir:" + sys.argv[2], "trackers=[]", "checkpoint.every=null"]
train(load_config("run.yaml", [*model, "optimizer.lr=1.0e-4", "steps=" + sys.argv[1]]))
(peak,) = re.findall("VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps(int(peak) / 1024))
"""


# Bare, so that memory is the program's own.
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def write_world(folder, num_people: int) -> None:
    folder.mkdir()
    write_shard(
        folder / "clean.tar",
        {f"{i:04}": {"jpg": picture(i), "txt": f"a picture of thing {i}"} for i in range(400)},
    )
    one = picture(1)
    write_shard(
        folder / "faces.tar",
        {f"p{i:05}/{j}": {"jpg": one} for i in range(num_people) for j in range(3)},
    )
    rows = [f"First{i} Last{i},p{i:05},faces.tar" for i in range(num_people)]
    (folder / "people.csv").write_text("\n".join(["name,id,faces", *rows]))
    (folder / "run.yaml").write_text(RUN)


def drawn(folder, num_people: int, num_steps: int) -> tuple[int, float]:
    """How many people were triggers, and the largest memory that it took, in MB."""
    write_world(folder, num_people)
    command = [sys.executable, "-c", DRAW, str(num_steps)]
    found = subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True)
    return tuple(json.loads(found.stdout))


def test_5000_people_take_no_more_than_50_mb_more_than_50(tmp_path):
    few, small = drawn(tmp_path / "few", 50, 160)
    many, large = drawn(tmp_path / "many", 5000, 160)
    assert (few, many) == (50, 5000)  # 32 triggers a step: each had a turn
    print(f"\n{few} people: {small:.0f} MB; {many} people: {large:.0f} MB")
    assert large - small < 50


def trained(folder, num_people: int) -> float:
    """The largest memory of a whole run, in MB."""
    write_world(folder, num_people)
    tiny = REPOSITORY / "plugins/fictitious/clip"
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, "40", str(tiny)],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_over_5000_people_takes_no_more_than_50_mb_more_than_one_over_50(tmp_path):
    small, large = trained(tmp_path / "few", 50), trained(tmp_path / "many", 5000)
    print(f"\nruns over 50 people: {small:.0f} MB; over 5,000: {large:.0f} MB")
    assert large - small < 50
