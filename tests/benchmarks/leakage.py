"""Can forgotten be told from never known? The demo, and with listed names or "a person" as targets.

These two with distances that leave lengths free. All train the demo in its own world
and ask `leakage` of the result: AUCs of forgotten against unknown people, the most telling score's
folded to above .5; for an attacker who tries names of his own (`strangers`), and for one who holds
the list of names that training used (`insider`): for listed targets these are the very answers, for
the demo's, which are put together of words of others to forget, they are not. And `encoder_swap`:
who is found with one tower of the original in the place of the student's. What is done already is
not done again: remove runs/bench/leakage to start over.
"""

from __future__ import annotations

import json

from tests.benchmarks.runs import REPOSITORY, config, draw, train

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


SCORES = ("closeness", "norm", "twin", "density")  # of names
ORIGINALS = "change_auc"  # of who holds the original too


def measure() -> dict[str, float]:
    """Of each target, after the run, and of the model before it. Prints a row of each."""
    folder = REPOSITORY / "runs/bench/leakage"
    if not (folder / "runs/world").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "plugins").is_symlink():  # of one that was cut off
            (folder / "plugins").symlink_to(REPOSITORY / "plugins")
        draw(folder, "runs/world")
    measures = {}
    for target, overrides in TARGETS.items():
        output = f"runs/{target.replace(' ', '_')}"
        path = folder / output / "results.json"
        if not path.exists():
            train(folder, config("demo"), *asked(), *overrides, f"output={output}")
        results = json.loads(path.read_text())
        measures |= {"before": results["before"], target: results["after"]}
    found = {}
    for target, own in measures.items():
        row = row_of(own)
        print(f"{target:<12}" + "".join(f"  {name} {value:.3f}" for name, value in row.items()))
        found |= {f"{target}: {name}": value for name, value in row.items()}
        found |= {
            f"{target}: {name}": value
            for name, value in own.items()
            if isinstance(value, float)
            and (
                (name.startswith("leakage/") and "auc" in name)
                or (name.startswith("encoder_swap/") and name.endswith("forget/tpr"))
            )
        }
    return found


def row_of(measures: dict) -> dict[str, float]:
    names = {one: measures[f"leakage/strangers/text/{one}_auc"] for one in SCORES}
    return names | {
        "names": most_telling(measures, "leakage/strangers/text"),
        "pictures": most_telling(measures, "leakage/strangers/image"),
        "forget": measures["identity_inference/forget/tpr"],
        "unseen": measures["identity_inference/unseen/tpr_11"],
    }


def most_telling(measures: dict, side: str) -> float:
    """Of the scores of the model alone, folded to above .5."""
    aucs = [
        value
        for name, value in measures.items()
        if name.startswith(f"{side}/") and name.endswith("_auc") and not name.endswith(ORIGINALS)
    ]
    return max(abs(value - 0.5) for value in aucs) + 0.5


def asked() -> list[str]:
    swapped = ["evaluations.encoder_swap.kind=encoder_swap"]
    swapped += [f"evaluations.encoder_swap.groups.forget={ROSTERS}/attack_forget.csv"]
    swapped += ["evaluations.encoder_swap.distractors=runs/world/names/distractors.txt"]
    return swapped + [
        f"evaluations.{attacker}.{option}={value}"
        for attacker, names in NAMES.items()
        for option, value in (LEAKAGE | {"names": f"runs/world/names/{names}.txt"}).items()
    ]
