"""Seconds to the first batch after a resume at step 100, and at step 100,000.

Synthetic indexed shards of captions. Both positions are reached by drawing every step up to them;
then the two resumes take turns, each in a process of its own that reads its shards anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.benchmarks.captions import write_shard
from trainer.api import Pair, Sample
from trainer.configuration.config import Config, load_config
from trainer.data.indexing import index_shards
from trainer.data.loader import draw
from trainer.data.skips import Skips
from trainer.data.steps import Positions, Steps, StreamState

# Of a lane two shards: after 100,000 steps it stands near the end of one.
SHARDS, SAMPLES = 32, 3_850
STEPS = (100, 100_000)
ROUNDS = 7
RUN = """
model: {name: ViT-B-32}
data: {shards: "{00000..00031}.tar", workers: 0, lanes: 16}
objectives: {keep: {kind: preserve, batch_size: 16, towers: [text]}}
optimizer: {lr: 1}
steps: 1
"""
TIME = """
import sys
from time import perf_counter
from trainer.configuration.config import load_config
from trainer.data.loader import draw
from trainer.data.steps import Steps, StreamState
from tests.benchmarks.resume import PositionsBuilder
config = load_config("run.yaml")
state = StreamState.from_json(open(sys.argv[1]).read())
started_at = perf_counter()
steps = Steps(config.objectives, config.data, 0, 0, 1, PositionsBuilder, resume=state)
next(draw(steps, 0))
print(perf_counter() - started_at)
"""


class PositionsBuilder:
    """Of a step nothing but where it ends."""

    def add(self, name: str, turn: int, sample: Sample, pair: Pair) -> None:
        pass

    def finish(self, skips: Skips, positions: Positions) -> Positions:
        return positions


def state_after(config: Config, num_steps: int) -> StreamState:
    steps = Steps(config.objectives, config.data, 0, 0, 1, PositionsBuilder)
    positions = next(islice(draw(steps, 0), num_steps - 1, None))[0]
    return StreamState(num_steps, steps.order, positions)


def measure() -> dict[str, float]:
    """Seconds of each, and the later one's over the earlier one's: of the medians."""
    repository = Path(__file__).parents[2]
    with TemporaryDirectory() as folder:
        for shard in range(SHARDS):
            write_shard(Path(folder), shard, SAMPLES, picture_bytes=0)
        index_shards([f"{folder}/*.tar"], None, 1)
        file = Path(folder) / "run.yaml"
        file.write_text(RUN.replace('"{000', f'"{folder}/{{000'))
        config = load_config(file)
        for step in STEPS:
            Path(folder, f"{step}.json").write_text(state_after(config, step).to_json())
        found: dict[int, list[float]] = {step: [] for step in STEPS}
        for _ in range(ROUNDS):
            for step in STEPS:
                command = [sys.executable, "-c", TIME, f"{step}.json"]
                environment = {"PYTHONPATH": str(repository)}
                told = subprocess.check_output(command, cwd=folder, env=environment)
                found[step].append(json.loads(told))
    early, late = (median(found[step]) for step in STEPS)
    return {"seconds_at_100": early, "seconds_at_100000": late, "ratio": late / early}
