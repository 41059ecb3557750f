"""What does each part of the recipe do? 1,024 names, 500 steps, one part changed at a time.

By configs/fictitious_thousands.yaml, in the text tower alone of the world that `make
thousands` draws. 500 steps are too few on purpose: what helps shows. What is done
already is not done again: remove runs/bench/ablation to start over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.edits import closed_form, of_rank
from tests.benchmarks.runs import REPOSITORY, evaluate, train
from tests.benchmarks.thousands import configuration, roster

STEPS, FORGOTTEN, ATTACKED, CANDIDATES = 500, 1024, 256, 1500
EVERY = 100  # steps, after which who is forgotten could leave off
RANKS = (4, 16, 64)  # of 128
PAIRS = 40_000  # for the closed form
NAMES = "objectives.names"
CONFIGURED = "as configured"
PARTS = {
    CONFIGURED: [],
    "targets: unknown names of a list": [f"{NAMES}.targets=listed"],
    'target: "a person"': [f"{NAMES}.target=a person"],
    "distance: cosine": [f"{NAMES}.distance=cosine", "objectives.captions.distance=cosine"],
    "templates alone, no clean captions": [f"{NAMES}.template_share=1.0"],
    "no recombined neighbours": [f"{NAMES}.shares.recombined=0", f"{NAMES}.shares.other=0.45"],
    "no other names": [f"{NAMES}.shares.other=0", f"{NAMES}.shares.recombined=0.45"],
    "no replay": [f"{NAMES}.shares.replayed=0"],
    "clean captions weigh 3, not 10": ["objectives.captions.weight=3.0"],
    "more for who is not forgotten yet": [f"{NAMES}.kind=name_to_person_harder_first"],
    "token table trained as well": ["model.freeze=[]"],
    "learning rate 1e-3": ["optimizer.lr=1.0e-3"],
    "learning rate 4e-3": ["optimizer.lr=4.0e-3"],
    "AdamW, learning rate 1e-3": ["optimizer.kind=adamw", "optimizer.lr=1.0e-3"],
    "learning rate begun anew after 250 steps": ["optimizer.milestones=[250]"],
}
ATTACK = "identity_inference"
FOLDER = REPOSITORY / "runs/bench/ablation"
HARDER = Path(__file__).with_name("harder.py")  # a plugin
WEIGHTS = "model/open_clip_model.safetensors"


def measure() -> dict[str, float]:
    """Prints a row for each part: forgotten found, and unseen and replayed people kept."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found: dict[str, float] = {}
    print(f"{'':<44}" + "".join(f"{name:>18}" for name in SHOWN))
    for part, after in parts():
        row = {name: after[f"{ATTACK}/{measure}"] for name, measure in SHOWN.items()}
        print(f"{part:<44}" + "".join(f"{value:>18.3f}" for value in row.values()), flush=True)
        found |= {f"{part}: {name}": value for name, value in row.items()}
    return found


SHOWN = {
    "forget": "forget/tpr",
    "unseen": "unseen/tpr_11",
    "unseen, pictures": "unseen/picture_accuracy",
    "replayed": "replayed/tpr_11",
}


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part and what was measured after it."""
    for part, overrides in PARTS.items():
        yield part, trained(part, overrides)
        if part == CONFIGURED:
            rows = map(json.loads, (folder_of(part) / "metrics.jsonl").open())
            for row in rows:
                if f"{ATTACK}/forget/tpr" in row and 0 < row["step"] < STEPS:
                    yield f"left off after {row['step']} steps", row
    file, original = written("closed form alone"), Path(configured()["model"]["pretrained"])
    yield "closed form alone", evaluated(file, partial(closed_form, file, original, PAIRS))
    for rank in RANKS:
        whole, part = folder_of(CONFIGURED) / WEIGHTS, f"change of rank {rank} alone"
        yield part, evaluated(written(part), partial(of_rank, rank, whole, original))


def trained(part: str, overrides: list[str]) -> dict[str, Any]:
    path = folder_of(part) / "results.json"
    if not path.exists():
        changes = [f"output={folder_of(part)}", "checkpoint.every=null", f"steps={STEPS}"]
        if part == CONFIGURED:
            changes.append(f"evaluations.{ATTACK}.every={EVERY}")
        train(REPOSITORY, str(written(part)), *changes, *overrides)
    return json.loads(path.read_text())["after"]


def evaluated(file: Path, edit: Callable[[Path], None]) -> dict[str, Any]:
    """What is measured of weights that `edit` writes."""
    output = file.with_suffix("")
    path = output / "results.json"
    if not path.exists():
        weights = file.with_suffix(".safetensors")
        edit(weights)
        evaluate(REPOSITORY, str(file), weights, f"output={output}")
    return json.loads(path.read_text())["after"]


def folder_of(part: str) -> Path:
    return FOLDER / "".join(one if one.isalnum() else "_" for one in part)


def written(part: str) -> Path:
    """The configuration's file, beside the part's folder."""
    path = folder_of(part).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(configured(), sort_keys=False))
    return path


def configured() -> dict[str, Any]:
    raw = configuration("ours", "text", FORGOTTEN)
    attack = raw["evaluations"][ATTACK]
    attack["groups"] = {
        group: roster(f"attack_{group}", ATTACKED) for group in ("forget", "unseen", "replayed")
    }
    attack["candidates"] = CANDIDATES  # fewer are attacked, whose names are among them
    return raw | {"evaluations": {ATTACK: attack}, "plugins": [str(HARDER)]}
