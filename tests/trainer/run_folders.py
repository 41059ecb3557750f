"""Folders as finished runs leave them, with the results that a test wants."""

import json
from pathlib import Path

from trainer.statistics import ROC_STEPS, rate

PEOPLE = 64
SECONDS = {"load": 1.5, "before": 20.0, "train": 98.0, "after": 20.0, "export": 0.2, "total": 143.2}

NO_NAMES = "FileNotFoundError: /data/names.txt is not there"


def group(name: str, found: int, by_most: int) -> dict:
    """What the attack measures of one group: `found` of 64 people by a prompt, `by_most` by all."""
    won = [0.0] * 22
    won[0], won[5], won[21] = PEOPLE - found, found - by_most, by_most
    path = f"identity_inference/{name}"
    return {
        f"{path}/tpr": found / PEOPLE,
        f"{path}/tpr_11": by_most / PEOPLE,
        f"{path}/held_out/tpr": found / PEOPLE,
        f"{path}/held_out/tpr_6": by_most / PEOPLE,
        f"{path}/picture_accuracy": 0.9 * by_most / PEOPLE,
        f"{path}/closed_set": 0.95 * by_most / PEOPLE,
        f"{path}/prompts_won": won,
        f"{path}/people": float(PEOPLE),
        f"{path}/dropped": 0.0,
    }


def measures(forgotten: int, accuracy: float) -> dict:
    """Of a model that forgot so many of the 64, and does its tasks so well."""
    stranger = group("unknown", 1, 0)
    tasks = {f"zero_shot/{name}/accuracy": accuracy for name in ("colour", "shape")}
    return (
        group("forget", PEOPLE - forgotten, PEOPLE - forgotten)
        | group("replayed", 64, 63)
        | group("unseen", 63, 62)
        | {name: value for name, value in stranger.items() if not name.endswith("closed_set")}
        | tasks
        | {"zero_shot/colour/samples": 500.0}
    )


def roc_of(area: float) -> list[float]:
    """A curve with that area under it."""
    return [(step / ROC_STEPS) ** (1 / area - 1) for step in range(ROC_STEPS + 1)]


def other_measures(auc: float, drift: float) -> dict:
    """Of the evaluations beside the attack and the tasks."""
    areas = {"text/closeness": auc - 0.03, "text/norm": 0.5}
    areas |= {"image/closeness": auc, "image/norm": 0.48}
    scores = {f"leakage/{score}_auc": area for score, area in areas.items()}
    scores |= {f"leakage/{score}_roc": roc_of(area) for score, area in areas.items()}
    return scores | {
        "retrieval/captions/text_to_image/recall_1": 0.41,
        "retrieval/captions/text_to_image/recall_5": 0.72,
        "leakage/auc": auc,
        "text_inference/forget/flagged": 0.2,
        "identity_inference/forget/found_by/initials": 0.05,
        "face_probe/student/forget/accuracy_5": 0.4,
        "neighbours/drift": drift,
        "neighbours/first_name/people": 12.0,
        "my_own/something_new": 123.456,
    }


def intervals_of(found: dict, samples: int) -> dict:
    """As of shares of so many independent cases."""
    shares = {k: v for k, v in found.items() if isinstance(v, float) and 0 <= v <= 1}
    estimates = {name: rate(round(v * samples), samples) for name, v in shares.items()}
    return {name: [one.low, one.high] for name, one in estimates.items()}


def person(identity: str, group: str, before: int, after: int) -> dict:
    """A row of people.jsonl."""
    row = {"measure": "identity_inference/people", "identity": identity, "group": group}
    return row | {"before": {"prompts_won": before}, "after": {"prompts_won": after}}


def run_folder(
    parent: Path,
    before: dict,
    after: dict,
    between=(),
    steps=500,
    config="steps: 500\n",
    name="demo",
    people=(),
    **results,
) -> tuple[Path, dict]:
    """A folder of that name in `parent`, and what stands in its results.json."""
    folder = parent / name
    folder.mkdir()
    results = {
        "before": before,
        "after": after,
        "seconds": SECONDS,
        "steps": steps,
        "identities": PEOPLE,
        "skipped": {"names someone to forget": 1234, "undecodable picture": 2},
        "bad_shards": {"/data/00007.tar": {"undecodable picture": 2}},
    } | results
    rows = [{"step": 0, "seconds": 21.0} | before] if before else []
    for step in range(10, steps + 1, 10):
        losses = {"keep/text": 1 / step, "names/forget": 8 / step, "names/keep": 0.2 / step}
        losses |= {"bad_samples": step}
        rows.append({"step": step, "seconds": 21.0 + step / 5} | losses)
    rows += [{"step": step, "seconds": 60.0} | found for step, found in between]
    rows += [{"step": steps, "seconds": 143.0} | after] if after else []
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(config)
    if people:
        (folder / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in people))
    return folder, results


def full_run(parent: Path, name="demo", **changes) -> Path:
    """A run that measured everything that a report can show."""
    before = measures(0, 0.97) | other_measures(0.5, 0.0)
    after = measures(63, 0.966) | other_measures(0.54, 0.021)
    between = [(s, measures(s // 10, 0.96) | other_measures(0.52, 0.01)) for s in (200, 400)]
    between += [(s, {"samples_per_second": 900.0 + s, "peak_memory": 2.5e9}) for s in (100, 300)]
    between += [(step, {"failed": {"neighbours/strict": NO_NAMES}}) for step in (200, 400)]
    people = [person(f"{i:016x}", "unseen", 21, 21 - i % 5) for i in range(30)]
    people += [person("f" * 16, "forget", 21, 0), person("e" * 16, "unknown", 1, 0)]
    given = {
        "intervals": {"before": intervals_of(before, 4000), "after": intervals_of(after, 4000)},
        "margin": 0.01,
        "code": {"version": "0.1.0", "commit": "0123abc"},
        "failed": [
            {"evaluation": "neighbours/strict", "step": step, "cause": NO_NAMES}
            for step in (200, 400)
        ],
    }
    return run_folder(parent, before, after, between, name=name, people=people, **given | changes)[
        0
    ]
