"""The whole run on a small world: its losses, its folder, its measures, on one process and two."""

from __future__ import annotations

import base64
import copy
import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import open_clip
import pytest
import torch

from tests.conftest import REPOSITORY, write_shard
from tests.trainer.disguises import found_in
from tests.warm_python import warm_python
from trainer.configuration.config import load_config
from trainer.data import skips
from trainer.evaluate import evaluate_checkpoint
from trainer.models import clip as clips
from trainer.models.original import Original
from trainer.models.preprocess import Prepare
from trainer.reports.curves import read_curves
from trainer.runs.saved import lay_over
from trainer.train import train

# The demo's own configurations, small: no weights, few rows, few candidates.
SMALL = [
    "model.random_weights=true",
    "data.workers=0",
    "data.lanes=8",
    "evaluations.identity_inference.candidates=20",
    "evaluations.identity_inference.pictures=4",
    "optimizer.warmup_steps=2",
    "steps=4",
    "log_every=1",
]
SIZES = {
    "keep": "objectives.keep.batch_size=8",
    "names": "objectives.names.batch_size=16",
    "faces": "objectives.faces.batch_size=16",
}
GOLDEN = REPOSITORY / "tests/trainer/golden_losses.json"
OBJECTIVES = {
    "demo": ["keep", "names", "faces"],
    "demo_names": ["keep", "names"],
    "demo_faces": ["keep", "faces"],
    "demo_paper": ["keep", "names", "faces"],
}


def overrides(name: str, *more: str) -> list[str]:
    sizes = [SIZES[objective] for objective in OBJECTIVES[name]]
    milestones = ["optimizer.milestones=[2,3]"] if name == "demo_paper" else []
    return [*SMALL, *sizes, *milestones, *more]


def config_path(name: str) -> str:
    return str(REPOSITORY / "configs" / f"{name}.yaml")


def run(name: str, *more: str) -> Path:
    """Train in this process; gives the run's folder."""
    config = load_config(config_path(name), overrides(name, *more))
    train(config)
    return config.output


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[dict]:
    names = ("keep/", "names/", "faces/", "optimizer/")
    found = [{k: v for k, v in row.items() if k.startswith(names)} for row in rows(folder)]
    return [row for row in found if row]


@pytest.fixture(autouse=True)
def _in_the_world(small_world, monkeypatch, tmp_path):
    """In a folder of its own, beside the world."""
    (tmp_path / "plugins").symlink_to(REPOSITORY / "plugins")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/world").symlink_to(small_world / "runs/world")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def demo_run(small_world) -> Path:
    """A run of the demo, with wandb, made once."""
    before = Path.cwd()
    os.chdir(small_world)
    try:
        return small_world / run(
            "demo",
            *("trackers=[wandb]", "output=runs/demo", "profile.steps=[2,2]"),
            *("checkpoint.every=2", "evaluations.identity_inference.every=2"),
        )
    finally:
        os.chdir(before)


def test_a_run_writes_its_whole_folder(demo_run):
    written = {path.name for path in demo_run.iterdir()}
    assert written >= {"config.yaml", "metrics.jsonl", "results.json", "report.html", "model"}
    results = json.loads((demo_run / "results.json").read_text())
    assert results["steps"] == 4 and results["identities"] == 2
    assert results["seconds"].keys() >= {"load", "before", "train", "after", "export", "total"}
    for moment in ("before", "after"):
        assert results[moment].keys() >= {
            "identity_inference/forget/tpr",
            "identity_inference/forget/tpr_11",
            "identity_inference/forget/closed_set",
            "identity_inference/replayed/tpr_11",
            "identity_inference/unseen/tpr_11",
            "identity_inference/unknown/tpr",
            "zero_shot/colour/accuracy",
            "zero_shot/shape/accuracy",
        }


def test_the_saved_configuration_gives_the_same_run_again(demo_run, small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    again = load_config(demo_run / "config.yaml", ["output=runs/again", "trackers=[]"])
    train(again)
    assert losses(small_world / again.output) == losses(demo_run)


def people_of(world: Path) -> set[str]:
    names = set()
    for roster in (world / "runs/world/rosters").glob("*.csv"):
        with open(roster, newline="", encoding="utf-8") as file:
            names |= {row["name"] for row in csv.DictReader(file)}
    return names


def test_no_name_of_anyone_stands_in_the_runs_folder_in_any_form(demo_run, small_world):
    """Checkpoints, trackers and traces are in the folder."""
    names = people_of(small_world)
    assert len(names) == 13
    files = [path for path in demo_run.rglob("*") if path.is_file()]
    assert {".wandb", ".gz", ".html", ".safetensors"} <= {path.suffix for path in files}
    for path in files:
        assert not found_in(path, names), path


def test_peoples_pseudonyms_are_in_no_file_but_their_own_and_checkpoints(demo_run):
    """Which keep what was measured before. A report has those who are worst off."""
    lines = (demo_run / "people.jsonl").read_text().splitlines()
    pseudonyms = {json.loads(line)["identity"] for line in lines}
    assert len(pseudonyms) == 13
    files = [path for path in demo_run.rglob("*") if path.is_file()]
    holding = {str(path.relative_to(demo_run)) for path in files if found_in(path, pseudonyms)}
    wanted = {"people.jsonl", "checkpoints/step-00000002/state.json"}
    assert holding - {"report.html"} == wanted


def test_a_name_would_be_found_in_every_form(tmp_path):
    name, file = "José Ø'Neil", tmp_path / "file"
    forms = [
        *(name, name.upper(), name.lower(), "jose o neil", "jose_o_neil", "JoseONeil"),
        *(json.dumps(name), quote(name), quote_plus(name), name.encode().hex()),
        *(base64.b64encode(("x" * i + name + " and more").encode()).decode() for i in range(3)),
    ]
    for form in forms:
        file.write_text(f"something {form} else")
        assert found_in(file, {name}) == [name], form
    for packed in (zlib.compress, gzip.compress):
        file.write_bytes(b"before" + packed(name.encode()) + b"after")
        assert found_in(file, {name}) == [name]
    file.write_text("something else")
    assert not found_in(file, {name})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_losses_are_those_of_the_day_they_were_checked(name):
    """A change of these numbers is a change of the method: say so in its message.

    `UPDATE_GOLDEN_LOSSES=1 pytest -k day_they_were_checked` writes them anew.
    """
    found = losses(run(name, "evaluations={}"))
    if os.environ.get("UPDATE_GOLDEN_LOSSES"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=2) + "\n")
    golden = json.loads(GOLDEN.read_text())[name]
    assert len(found) == len(golden) == 4
    for one, other in zip(found, golden):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


def test_the_export_is_the_student_and_open_clip_loads_it(monkeypatch):
    students, originals, make = [], [], clips.student_of

    def noting(*options):
        students.append(make(*options))
        originals.append(copy.deepcopy(students[0].state_dict()))
        return students[0]

    monkeypatch.setattr(clips, "student_of", noting)
    folder = run("demo", "evaluations={}") / "model"
    file = folder / "open_clip_model.safetensors"
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "demo-export", config)
    model = open_clip.create_model("demo-export", pretrained=str(file)).eval()

    ([student], [original]), exported = (students, originals), model.state_dict()
    for name, weights in student.state_dict().items():
        place = re.sub(r"^image\.", "visual.", name.removeprefix("text."))
        assert torch.equal(exported[place].reshape(weights.shape), weights), name
    for name, weights in student.named_parameters():
        assert torch.equal(weights, original[name]) != weights.requires_grad, name

    same = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer("demo-export")(["a person", "a red circle"])
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokens), same.encode_text(tokens))


def test_a_checkpoint_is_measured_without_training(demo_run, small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    for checkpoint in (demo_run / "model", demo_run / "model/open_clip_model.safetensors"):
        config = load_config(config_path("demo"), overrides("demo", "output=runs/evaluated"))
        evaluate_checkpoint(config, str(checkpoint))
        found = json.loads((config.output / "results.json").read_text())
        expected = json.loads((demo_run / "results.json").read_text())
        # By name: what was lost and won back is measured afterwards alone.
        before = expected["before"]
        assert any(expected["after"][name] != value for name, value in before.items())
        assert found["after"] == expected["after"] and found["before"] == expected["before"]
        assert found["steps"] == 0 and (config.output / "report.html").is_file()
        assert not (config.output / "model").exists()


SUMS = """
from trainer import Evaluation, hookimpl

from tests.conftest import picture

class Sums(Evaluation):
    '''To the last bit.'''
    kind = "sums"

    def run(self, student, teacher):
        yield "text", student.encode_text(["a red hat"]).sum().item()
        yield "image", student.encode_image([picture(1)]).sum().item()

@hookimpl
def trainer_evaluations():
    return [Sums]
"""


@pytest.fixture(scope="module")
def summed(tmp_path_factory) -> list[str]:
    plugin = tmp_path_factory.mktemp("plugin") / "sums.py"
    plugin.write_text(SUMS)
    return [f"plugins=[{plugin}]", "evaluations={sums: {kind: sums}}"]


def test_of_rounded_weights_what_was_written_is_measured(summed):
    """Certificates tell the digest of the file."""
    folder = run("demo_names", *summed, "export.dtype=bfloat16")
    trained = json.loads((folder / "results.json").read_text())["after"]
    config = load_config(
        config_path("demo_names"), overrides("demo_names", *summed, "output=runs/b")
    )
    evaluate_checkpoint(config, str(folder / "model"))
    assert json.loads((config.output / "results.json").read_text())["after"] == trained


def test_what_was_exported_and_cannot_be_measured_is_told_and_the_run_ends(summed, monkeypatch):
    """As on a host that does not have the run's folder; not measured as it was before rounding."""

    def not_there(self, folder):
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(Original, "encoder_of_exported", not_there)
    folder = run("demo_names", *summed, "export.dtype=bfloat16", "output=runs/c")
    results = json.loads((folder / "results.json").read_text())
    (failed,) = results["failed"]
    assert failed["evaluation"] == "sums" and "No such file" in failed["cause"]
    assert results["after"] == {} and results["before"] and (folder / "report.html").is_file()


def test_a_file_alone_is_shown_pictures_as_the_model_is_that_it_is_of(
    tmp_path, monkeypatch, summed
):
    """A tag's weights are prepared for in its own way, which no file without its config tells."""
    load, model = clips.load, REPOSITORY / "plugins/fictitious/clip"
    (alone := tmp_path / "alone").mkdir()
    weights = shutil.copy(model / "open_clip_model.safetensors", alone)

    def as_of_a_tag(config):
        clip = load(config)
        if config.pretrained == str(weights):
            return clip
        own = clip.model.visual.preprocess_cfg | {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        return replace(clip, prepare=Prepare.of(own))

    monkeypatch.setattr(clips, "load", as_of_a_tag)
    options = [*summed, "output=runs/alone", "model.random_weights=false"]
    config = load_config(config_path("demo_names"), overrides("demo_names", *options))
    evaluate_checkpoint(config, str(weights))
    results = json.loads((config.output / "results.json").read_text())
    assert results["after"] == results["before"]


def test_a_step_that_a_run_saved_is_measured_as_it_was_then(demo_run, small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    config = load_config(config_path("demo"), overrides("demo", "output=runs/evaluated"))
    step = demo_run / "checkpoints/step-00000002"
    evaluate_checkpoint(config, str(step))
    after = json.loads((config.output / "results.json").read_text())["after"]
    first, then, last = [row for row in rows(demo_run) if "identity_inference/unseen/tpr" in row]
    assert then["step"] == 2
    own = {name for name in after if name.startswith("identity_inference/") and name in then}
    assert len(own) > 10 and all(after[name] == then[name] for name in own)
    for other in (first, last):  # of another step it is not
        assert any(after[name] != other[name] for name in own & other.keys())

    with pytest.raises(ValueError, match="step-00000002 is of another model; see to model.name"):
        lay_over(step, torch.nn.Linear(2, 2))

    (damaged := small_world / "step-00000002").mkdir()
    for file in step.iterdir():
        data = file.read_bytes()
        (damaged / file.name).write_bytes(data[:-1] if file.name == "random.pt" else data)
    with pytest.raises(ValueError, match="is not whole .random.pt is damaged.; name another"):
        evaluate_checkpoint(config, str(damaged))


def test_a_run_does_not_overwrite_an_earlier_one():
    folder = run("demo_names", "evaluations={}", "steps=3")
    first = (folder / "metrics.jsonl").read_bytes()
    run("demo_names", "evaluations={}", "steps=3", "seed=1")
    assert (folder.with_name("demo_names.1") / "metrics.jsonl").read_bytes() == first


def write_odd_shard() -> None:
    """Every seventh caption cannot be decoded."""
    texts = [b"\xff" if i % 7 == 1 else f"a red hat {i}".encode() for i in range(160)]
    write_shard(Path("odd.tar"), {f"{i:03}": {"txt": text} for i, text in enumerate(texts)})


def test_bad_samples_are_counted_by_reason_as_the_run_goes():
    write_odd_shard()
    folder = run("demo_names", "evaluations={}", "data.shards=odd.tar", "data.max_bad_share=0.9")
    counted = [row for row in rows(folder) if "bad_samples" in row]
    assert len(counted) == 4 and counted[-1]["bad_samples"] > counted[0]["bad_samples"] > 0
    for row in counted:
        assert row["bad_samples/undecodable text"] == row["bad_samples"]
        (counts,) = row["bad_shards"].values()  # of the one shard
        assert counts == {"undecodable text": row["bad_samples"]}
    assert "bad_samples" not in read_curves(folder, {}).losses


def test_a_run_of_which_too_many_samples_are_bad_stops(monkeypatch):
    write_odd_shard()
    monkeypatch.setattr(skips, "MIN_JUDGED", 40)  # a step has 24 pairs
    few = ["evaluations={}", "data.shards=odd.tar", "data.max_bad_share=0.1"]
    with pytest.raises(ValueError, match=r"more than data.max_bad_share \(0.1\) allows"):
        run("demo_names", *few)
    steps = [row["step"] for row in rows(Path("runs/demo_names")) if "bad_samples" in row]
    assert 1 < len(steps) < 4  # all are 4
    assert not Path("runs/demo_names/model").exists()


def test_a_run_that_diverges_stops_before_the_update_and_says_where_and_on_what():
    said = (
        r"the loss keep/text is nan, .+ at step 2; nothing was updated or exported, "
        r"runs/demo_names/checkpoints/step-00000001 is the last checkpoint. .+: "
        r"runs/world/clean/00000.tar"
    )
    with pytest.raises(FloatingPointError, match=said):
        run("demo_names", "evaluations={}", "optimizer.lr=1e30", "optimizer.clip=null", "steps=5",
            "checkpoint.every=1")  # fmt: skip
    assert not Path("runs/demo_names/model").exists()


def launched(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    python = warm_python()
    file = REPOSITORY / "launch" / ("cpu.yaml" if processes == 1 else "ddp.yaml")
    accelerate = [python, "-m", "accelerate.commands.launch"]
    where = ["--config_file", str(file), "--mixed_precision", "no", "--num_processes"]
    command = [*accelerate, *where, str(processes), "-m", "trainer", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment["PYTHON_EXEC"] = python
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_processes_give_the_losses_and_measures_of_one(small_world, tmp_path):
    """And print no name."""
    steps = ("steps=20", "data.workers=1")
    for processes in (1, 2):
        arguments = overrides("demo", *steps, f"output=runs/{processes}")
        done = launched(processes, "train", config_path("demo"), *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        (tmp_path / "printed.log").write_text(done.stdout + done.stderr)
        assert not found_in(tmp_path / "printed.log", people_of(small_world))
    one, two = losses(Path("runs/1")), losses(Path("runs/2"))
    assert len(one) == len(two) == 20
    for a, b in zip(one, two):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    results = [json.loads(Path(f"runs/{n}/results.json").read_text()) for n in (1, 2)]
    assert results[0]["before"] == results[1]["before"]
    assert results[0]["after"] == results[1]["after"]


def test_the_pull_is_refused_where_gradients_are_scaled(_in_the_world):
    pulled = overrides("demo", "optimizer.anchor=0.1")
    done = subprocess.run(
        [warm_python(), "-m", "trainer", "train", config_path("demo"), *pulled],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_MIXED_PRECISION": "fp16"},
        capture_output=True, text=True,
    )  # fmt: skip
    message = "optimizer.anchor does not go with fp16; launch with --mixed_precision bf16 or no\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_batches_that_ranks_cannot_share_are_refused_by_every_launch():
    lanes = overrides("demo", "data.lanes=7")
    done = launched(2, "train", config_path("demo"), *lanes)
    assert done.returncode != 0
    told = (
        "data.lanes is 7, not a multiple of the 2 processes; launch as many as divide it, or for a"
    )
    assert f"{told} run that begins set data.lanes=8" in done.stderr
    assert done.stderr.count("data.lanes is 7") == 1
    assert not Path("runs/demo").exists()


def test_a_run_tells_of_its_speed_and_keeps_the_trace_asked_for(_in_the_world):
    folder = run("demo", "steps=4", "log_every=2", "profile.steps=[2,3]")
    logged = [row for row in rows(folder) if "samples_per_second" in row]
    assert [row["step"] for row in logged] == [2, 4]
    for row in logged:
        assert row["tokens_per_second"] > row["samples_per_second"] > 0
        assert 0 < row["utilisation"] < 1 and 0 <= row["waiting"] <= 1
        assert row["peak_memory_gb"] > 0.1 and row["gradient_norm"] > 0
    assert [path.name for path in (folder / "trace").iterdir()] == ["steps-2-3-rank-0.json.gz"]
