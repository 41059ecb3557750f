"""From a thousand people at once to one, ours and the paper's recipe: who is forgotten, who kept?

In the world of 2,048 people that `make thousands` draws: 1 to 1,024 of them are forgotten by
configs/fictitious_thousands.yaml in the text tower, the image tower, or both; and by the paper's
recipe (configs/demo_paper.yaml) in as many steps of as many samples; all that once for each seed.
What is done already is not done again: remove runs/bench/thousands to start over. After each run
tests/benchmarks/thousands_*.svg are drawn of those that there are. `make thousands` writes the
configurations too, of the first seed, for whoever wants one alone.
"""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.picture import draw
from tests.benchmarks.runs import REPOSITORY, config, train
from trainer.configuration.sections import steps_for

SEEDS = (0, 1, 2)
COUNTS = (1024, 512, 64, 8, 1)
KEPT = ("captions", "pictures")
OBJECTIVES = {
    "text": ("captions", "names"),
    "image": ("pictures", "faces"),
    "both": (*KEPT, "names", "faces"),
}
RECIPES = ("ours", "paper")
RUNS = list(product(OBJECTIVES, RECIPES, COUNTS))
WORLD = REPOSITORY / "runs/thousands"
HERE = Path(__file__).parent
FORGOTTEN, UNSEEN = "identity_inference/forget", "identity_inference/unseen"


def measure() -> dict[str, float]:
    """Prints a row for each run; of each, by recipe, towers and count, what it found."""
    if not (WORLD / "world.json").exists():
        raise SystemExit("there is no world in runs/thousands; make thousands draws it")
    write_all()
    found: dict[str, float] = {}
    print(f"{'':<28}" + "".join(f"{measure:>14}" for measure in SHOWN))
    for seed, (towers, recipe, count) in product(SEEDS, RUNS):
        row = figures(results(recipe, towers, count, seed))
        print(f"{recipe + ' ' + towers:<14}{count:>6,}, seed {seed}" + written(row), flush=True)
        found |= {f"{recipe}, {towers}, {count}, seed {seed}: {name}": row[name] for name in row}
        draw_what_there_is(towers)
    return found


def draw_what_there_is(towers: str) -> None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for recipe, what in product(RECIPES, DRAWN):
        for count, seed in product(sorted(COUNTS), SEEDS):
            if (path := folder(recipe, towers, count, seed) / "results.json").exists():
                share = figures(json.loads(path.read_text()))[what]
                lines.setdefault(f"{recipe}, {DRAWN[what]}", []).append((count, share))
    picture = draw(f"{towers}, after forgetting", lines, "people to forget")
    (HERE / f"thousands_{towers}.svg").write_text(picture, encoding="utf-8")


def folder(recipe: str, towers: str, count: int, seed: int) -> Path:
    return REPOSITORY / f"runs/bench/thousands/{recipe}_{towers}_{count}/seed_{seed}"


def file_of(recipe: str, towers: str, count: int) -> Path:
    """Of all seeds."""
    return folder(recipe, towers, count, SEEDS[0]).parent.with_suffix(".yaml")


def write_all() -> None:
    for towers, recipe, count in RUNS:
        file = file_of(recipe, towers, count)
        output = folder(recipe, towers, count, SEEDS[0]).relative_to(REPOSITORY)
        raw = configuration(recipe, towers, count) | {"output": str(output)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(raw, sort_keys=False))


def results(recipe: str, towers: str, count: int, seed: int) -> dict[str, Any]:
    output = folder(recipe, towers, count, seed)
    path = output / "results.json"
    if not path.exists():
        overrides = [f"seed={seed}", f"output={output}", "checkpoint.every=null"]
        train(REPOSITORY, str(file_of(recipe, towers, count)), *overrides)
    return json.loads(path.read_text())


def configuration(recipe: str, towers: str, count: int) -> dict[str, Any]:
    """That of thousands for so many people and these towers, or what the paper does in its place.

    The paper's is given as many steps as ours takes, and as many samples a step.
    """
    raw = yaml.safe_load(Path(config("fictitious_thousands")).read_text())
    ours = raw["objectives"]
    if recipe == "paper":
        paper = Path(config("demo_paper")).read_text().replace("runs/world", "runs/thousands")
        their = yaml.safe_load(paper)
        raw["model"] |= {"freeze": [], "freeze_norms": their["model"]["freeze_norms"]}
        keep = their["objectives"]["keep"]
        kept = {name: keep | {"towers": ours[name]["towers"]} for name in KEPT}
        raw |= {"objectives": their["objectives"] | kept, "optimizer": their["optimizer"]}
        steps = steps_for(count, by_pictures=towers != "text")
        raw["optimizer"]["milestones"] = [steps // 2, 3 * steps // 4]
        if towers == "image":  # theirs are other encoders' settings
            milestones = [steps // 4, steps // 2]
            raw["optimizer"] |= {"anchor": 0.005, "gamma": 0.1, "milestones": milestones}
    objectives = raw["objectives"]
    raw["objectives"] = {name: objectives[name] for name in OBJECTIVES[towers]}
    for name, one in raw["objectives"].items():
        one["batch_size"] = ours[name]["batch_size"]
        if "roster" in one:
            one["roster"] = roster("forget", count)
    if towers == "image":
        raw["model"]["freeze"] = []  # the text tower's, which is not there
    attacked = roster("attack_forget", count)
    evaluations = raw["evaluations"]
    evaluations["identity_inference"]["groups"]["forget"] = attacked
    evaluations["neighbours"]["forget"] = attacked
    evaluations["leakage"]["forgotten"] = attacked
    evaluations["trained"]["forgotten"] = roster("forget", count)
    for name in ("identity_inference", "neighbours"):
        evaluations[name]["distractors"] = distractors(count)
    return raw


def roster(name: str, count: int) -> str:
    """The first so many of a roster, beside it: the faces are named from there."""
    path = WORLD / f"rosters/{name}_{count}.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows(name)[: 1 + count])
    return str(path)


def distractors(count: int) -> str:
    """With those who are not to be forgotten: as many candidates know a picture, whatever count."""
    path = WORLD / f"names/distractors_{count}.txt"
    names = [f"{name}\n" for _, name, _ in rows("forget")[1 + count :]]
    path.write_text("".join(names) + (WORLD / "names/distractors.txt").read_text())
    return str(path)


def rows(name: str) -> list[list[str]]:
    """Of a roster: id, name, faces."""
    with open(WORLD / f"rosters/{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def figures(results: dict[str, Any]) -> dict[str, float]:
    before, after = results["before"], results["after"]
    losses = [
        before[name] - after[name]
        for name in before
        if name.startswith(("zero_shot/", "retrieval/")) and isinstance(before[name], float)
    ]
    return {
        "forget": after[f"{FORGOTTEN}/tpr"],
        "held out": after[f"{FORGOTTEN}/held_out/tpr"],
        "unseen": after[f"{UNSEEN}/tpr_11"] / before[f"{UNSEEN}/tpr_11"],
        "pictures": after[f"{UNSEEN}/picture_accuracy"],
        "neighbours": after["neighbours/neighbours/tpr_11"]
        / before["neighbours/neighbours/tpr_11"],
        "tasks change": max(map(abs, losses)),
        "tasks lose": max(losses),
        "names leak": after["leakage/auc_of_text"],
        "up to": after["leakage/auc_of_text_by_chance"],
        "pictures leak": after["leakage/auc_of_image"],
        "up to ": after["leakage/auc_of_image_by_chance"],
        "trained leak": after["leakage/trained/auc_of_image"],
        "seconds": results["seconds"]["train"],
    }


DRAWN = {"forget": "forgotten people found", "unseen": "unseen people kept"}
SHOWN = (  # up to: what 19 of 20 leak by chance
    "forget", "held out", "unseen", "pictures", "neighbours", "tasks change", "tasks lose",
    "names leak", "up to", "pictures leak", "up to ", "trained leak", "seconds",
)  # fmt: skip


def written(row: dict[str, float]) -> str:
    return "".join(f"{row[name]:>14.3f}" for name in SHOWN)


if __name__ == "__main__":
    write_all()
