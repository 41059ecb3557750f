"""Can forgotten be told from never known? The demo, and with listed names or "a person" as targets.

These two with distances that leave lengths free. All train the demo in its own world
and ask `leakage` of the result: AUCs of forgotten against unknown people, the most telling score's
folded to above .5; for an attacker who tries names of his own (`strangers`), and for one who holds
the names that training used (`insider`). And `encoder_swap`: who is found with one tower of the
original in the place of the student's. What is done already is not done again: remove
runs/bench/leakage to start over.
"""

from __future__ import annotations

import json

from tests.benchmarks.seeds import REPOSITORY, config, launch

ROSTERS = "runs/world/rosters"
LEAKAGE = {
    "kind": "leakage",
    "forgotten": f"{ROSTERS}/attack_forget.csv",
    "unknown": f"{ROSTERS}/attack_unknown.csv",
}
NAMES = {"strangers": "distractors", "insider": "other_names"}  # that an attacker compares with
COSINE = [f"objectives.{name}.distance=cosine" for name in ("keep", "names", "faces")]
TARGETS = {
    "a person": [*COSINE, "objectives.names.target=a person", "objectives.faces.target=text"],
    "listed": [*COSINE, "objectives.names.targets=listed"],
    "neighbours": [],
}


def measure() -> dict[str, float]:
    """Of each target, after the run."""
    folder = REPOSITORY / "runs/bench/leakage"
    if not (folder / "runs/world").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plugins").symlink_to(REPOSITORY / "plugins")
        launch(folder, "fictitious", "runs/world")
    found = {}
    for target, overrides in TARGETS.items():
        output = f"runs/{target.replace(' ', '_')}"
        results = folder / output / "results.json"
        if not results.exists():
            launch(folder, "train", config("demo"), *asked(), *overrides, f"output={output}")
        after = json.loads(results.read_text())["after"]
        found |= {
            f"{target}: {name}": value
            for name, value in after.items()
            if isinstance(value, float)
            and (
                (name.startswith("leakage/") and "auc" in name)
                or (name.startswith("encoder_swap/") and name.endswith("forget/tpr"))
            )
        }
    return found


def asked() -> list[str]:
    swapped = ["evaluations.encoder_swap.kind=encoder_swap"]
    swapped += [f"evaluations.encoder_swap.groups.forget={ROSTERS}/attack_forget.csv"]
    swapped += ["evaluations.encoder_swap.distractors=runs/world/names/distractors.txt"]
    return swapped + [
        f"evaluations.{attacker}.{option}={value}"
        for attacker, names in NAMES.items()
        for option, value in (LEAKAGE | {"names": f"runs/world/names/{names}.txt"}).items()
    ]
