"""Steps on clean samples whose embeddings by the teacher are kept, against steps that make them.

The demo's model, world and launch, its objective for clean samples alone, in turns; and what it
takes to make them, once.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import yaml

from tests.benchmarks.runs import REPOSITORY, config, draw, train

ROUNDS, STEPS = 3, 40
FOLDER = REPOSITORY / "runs/bench/known_embeddings"


def measure() -> dict[str, float]:
    """Seconds a step of each, the median of the rounds' ratios, and seconds to make them."""
    if not (FOLDER / "runs/world").exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        draw(FOLDER, "runs/world")
    raw = yaml.safe_load(Path(config("demo")).read_text())
    raw["model"]["name"] = f"local-dir:{REPOSITORY / 'plugins/fictitious/clip'}"
    raw |= {"objectives": {"keep": raw["objectives"]["keep"]}, "evaluations": {}, "steps": STEPS}
    file = FOLDER / "keep.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    for kept in (FOLDER / "runs/world/clean").glob("*.safetensors"):
        kept.unlink()
    made = seconds(file, "make")["load"]
    rounds = [(step(file, "null"), step(file, "use")) for _ in range(ROUNDS)]
    without, use = (median(own) for own in zip(*rounds, strict=True))
    return {
        "seconds a step": without,
        "seconds a step, embeddings kept": use,
        "ratio": median(one / other for one, other in rounds),
        "seconds to make them": made - seconds(file, "use")["load"],
    }


def step(file: Path, how: str) -> float:
    return seconds(file, how)["train"] / STEPS


def seconds(file: Path, how: str) -> dict[str, float]:
    """Of a run's phases."""
    output = FOLDER / f"runs/{how}"
    train(FOLDER, str(file), f"data.embeddings={how}", f"output={output}")
    return json.loads((output / "results.json").read_text())["seconds"]
