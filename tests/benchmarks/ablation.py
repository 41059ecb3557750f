"""What does each part of the recipe do? 1,024 names, 500 steps, one part changed at a time.

By configs/fictitious_thousands.yaml, in the text tower alone of the world that `make
thousands-clip` draws and learns. 500 steps are too few on purpose: what helps shows. What is done
already is not done again: remove runs/bench/ablation to start over.
"""

from __future__ import annotations

import json

import yaml

from tests.benchmarks.runs import REPOSITORY, train
from tests.benchmarks.thousands import configuration, roster

STEPS, FORGOTTEN, ATTACKED, CANDIDATES = 500, 1024, 256, 1500
NAMES = "objectives.names"
PARTS = {
    "as configured": [],
    "targets: unknown names of a list": [f"{NAMES}.targets=listed"],
    'target: "a person"': [f"{NAMES}.target=a person"],
    "distance: cosine": [f"{NAMES}.distance=cosine", "objectives.keep.distance=cosine"],
    "templates alone, no clean captions": [f"{NAMES}.template_share=1.0"],
    "no recombined neighbours": [f"{NAMES}.shares.recombined=0", f"{NAMES}.shares.other=0.45"],
    "no other names": [f"{NAMES}.shares.other=0", f"{NAMES}.shares.recombined=0.45"],
    "no replay": [f"{NAMES}.shares.replayed=0"],
    "token table trained as well": ["model.freeze=[]"],
    "learning rate 3e-4": ["optimizer.lr=3.0e-4"],
    "learning rate 3e-3": ["optimizer.lr=3.0e-3"],
}
ATTACK = "identity_inference"


def measure() -> dict[str, float]:
    """Prints a row for each part: forgotten found, and unseen and replayed people kept."""
    found: dict[str, float] = {}
    print(f"{'':<40}" + "".join(f"{name:>12}" for name in SHOWN))
    for part, overrides in PARTS.items():
        row = figures(results(part, overrides))
        print(f"{part:<40}" + "".join(f"{row[name]:>12.3f}" for name in SHOWN), flush=True)
        found |= {f"{part}: {name}": value for name, value in row.items()}
    return found


SHOWN = ("forget", "unseen", "unseen, pictures", "replayed")


def results(part: str, overrides: list[str]) -> dict:
    folder = REPOSITORY / "runs/bench/ablation"
    name = "".join(one if one.isalnum() else "_" for one in part)
    path = folder / name / "results.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        raw = configuration("ours", "text", FORGOTTEN)
        attack = raw["evaluations"][ATTACK]
        attack["groups"] = {
            group: roster(f"attack_{group}", ATTACKED) for group in ("forget", "unseen", "replayed")
        }
        attack["candidates"] = CANDIDATES  # fewer are attacked, whose names are among them
        raw["evaluations"] = {ATTACK: attack}
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        changes = [f"output={folder / name}", "checkpoint.every=null", f"steps={STEPS}"]
        train(REPOSITORY, str(file), *changes, *overrides)
    return json.loads(path.read_text())


def figures(results: dict) -> dict[str, float]:
    after = results["after"]
    return {
        "forget": after[f"{ATTACK}/forget/tpr"],
        "unseen": after[f"{ATTACK}/unseen/tpr_11"],
        "unseen, pictures": after[f"{ATTACK}/unseen/picture_accuracy"],
        "replayed": after[f"{ATTACK}/replayed/tpr_11"],
    }
