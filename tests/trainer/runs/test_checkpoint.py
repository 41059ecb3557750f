from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import REPOSITORY, demo_without_attack, kill_all
from tests.warm_python import warm_python
from trainer.data.skips import Skips
from trainer.data.steps import StreamState
from trainer.runs.saved import CONFIG, MANIFEST, MODEL, OPTIMIZER, RANDOM, STATE, Saved, find
from trainer.strategies.spread import Spread
from trainer.system.lock import beside

STEPS = 24
# Small, of both towers, with a step's batch from two objectives.
SMALL = [
    "steps=24", "log_every=4", "checkpoint.every=4", "data.workers=1", "data.lanes=8",
    "objectives.keep.batch_size=8", "objectives.names.batch_size=16",
    "objectives.faces.batch_size=8", "optimizer.warmup_steps=2",
]  # fmt: skip


def launched(
    folder: Path, name: str, *overrides: str, ranks: int = 1, python: str = sys.executable
) -> subprocess.Popen:
    command = [
        python,
        "-m",
        "trainer",
        "train",
        "configs/small.yaml",
        f"output=runs/{name}",
    ]
    if ranks > 1:
        launcher = [python, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={ranks}", *command[1:]]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment["PYTHON_EXEC"] = python
    return subprocess.Popen(
        [*command, *SMALL, f"output=runs/{name}", *overrides],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finished(folder: Path, name: str, *overrides: str, ranks: int = 1) -> str:
    """What it printed."""
    process = launched(folder, name, *overrides, ranks=ranks, python=warm_python())
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def killed(folder: Path, name: str, step: int, *overrides: str, ranks: int = 1) -> None:
    """All its processes at once, some time after its checkpoint of that step."""
    # With a warm Python's end the process that it stands for is killed; of several, their launcher
    # would be, and not tell them.
    python = warm_python() if ranks == 1 else sys.executable
    process = launched(folder, name, *overrides, ranks=ranks, python=python)
    wanted = folder / "runs" / name / "checkpoints" / f"step-{step:08d}"
    while not wanted.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    kill_all(process)
    process.communicate()


@pytest.fixture(scope="module")
def world(small_world) -> Path:
    """The demo with an attack that takes a second; and a run of it that nobody cut off."""
    demo_without_attack(small_world, "small")
    finished(small_world, "whole")
    return small_world


def same_result(folder: Path, name: str, other: str = "whole") -> None:
    runs = [folder / "runs" / one for one in (name, other)]
    weights = [load_file(run / "model/open_clip_model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys()
    for tensor in weights[0]:
        assert weights[0][tensor].equal(weights[1][tensor]), tensor
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    for kept in ("before", "after", "steps", "skipped"):
        assert results[0][kept] == results[1][kept]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in runs]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for own, others in zip(*rows):
        assert repeatable(own) == repeatable(others)


def repeatable(row: dict) -> dict:
    """Without what is measured by the clock and of the machine."""
    return {name: value for name, value in row.items() if "/" in name or name == "bad_samples"}


def test_who_joins_a_roster_meanwhile_is_not_said_to_be_forgotten(world):
    asked, people = world / "asked.csv", "name\nZebulon Quimby\nXimena Vandervoort\n"
    asked.write_text(people)
    options = [f"objectives.names.roster={asked}"]
    killed(world, "joined", 8, *options)
    asked.write_text(f"{people}Somebody Later\n")
    process = launched(world, "joined", *options, python=warm_python())
    assert "other people are to be forgotten now than when it began" in process.communicate()[0]
    assert process.returncode != 0 and not (world / "runs/joined/model").exists()
    asked.write_text(people)
    assert "goes on after step" in finished(world, "joined", *options)


def test_other_people_who_are_given_other_steps_by_their_number_are_refused_as_well(world):
    asked, counted = world / "counted.csv", "steps=auto"
    options = [f"objectives.names.roster={asked}", "checkpoint.keep=1"]
    people = [f"Zebulon Quimby{chr(97 + i)}" for i in range(20)]
    asked.write_text("\n".join(["name", *people[:2]]))
    killed(world, "counted", 8, *options, counted)
    asked.write_text("\n".join(["name", *people]))
    process = launched(world, "counted", *options, counted, python=warm_python())
    assert "other people are to be forgotten now than when it began" in process.communicate()[0]
    assert process.returncode == 2 and not (world / "runs/counted.1").exists()
    # Who names another number begins anew, whoever is to be forgotten.
    assert "of another steps, is kept as runs/counted.1" in finished(world, "counted", *options)


def test_the_same_run_gives_the_same_weights_bit_for_bit(world):
    finished(world, "again")
    same_result(world, "again")


def test_killed_and_started_again_a_run_ends_as_if_nothing_had_been(world):
    killed(world, "cut", 8)
    text = finished(world, "cut")
    step = int(re.search(r"runs/cut goes on after step (\d+)", text)[1])
    assert f"{STEPS - step} of {STEPS} steps (since it was resumed) in" in text
    same_result(world, "cut")
    # What is finished is not gone on with, and is so only when its report is written.
    assert "an earlier run is kept as runs/cut.1" in finished(world, "cut")
    (world / "runs/cut/report.html").unlink()
    assert "runs/cut goes on after step 20" in finished(world, "cut")
    same_result(world, "cut")


@pytest.mark.slow
def test_killed_twice_and_each_time_soon_after_a_checkpoint(world):
    killed(world, "twice", 4)
    killed(world, "twice", 12)
    finished(world, "twice")
    same_result(world, "twice")


def test_the_last_checkpoints_are_kept_and_a_damaged_one_is_passed_over(world):
    killed(world, "damaged", 12)
    checkpoints = world / "runs/damaged/checkpoints"
    whole = sorted(one.name for one in checkpoints.iterdir() if not one.suffix)
    assert len(whole) in (2, 3)  # killed before the oldest was removed, perhaps
    newest = checkpoints / whole[-1]
    data = bytearray((newest / MODEL).read_bytes())
    data[-100] ^= 1
    (newest / MODEL).write_bytes(data)
    text = finished(world, "damaged")
    assert f"{whole[-1]} is not whole (student.safetensors is damaged)" in text
    assert f"goes on after step {int(whole[-2][5:])}" in text
    same_result(world, "damaged")


def test_a_damaged_checkpoint_is_not_counted_among_those_that_are_kept(world):
    killed(world, "one-kept", 8, "checkpoint.keep=1")
    checkpoints = world / "runs/one-kept/checkpoints"
    (checkpoints / "step-00000007.tmp").mkdir(exist_ok=True)  # of a save that was cut off
    shutil.copytree(find(checkpoints).folder, checkpoints / "step-00000099")
    (checkpoints / "step-00000099" / STATE).write_text("{}")
    text = finished(world, "one-kept", "checkpoint.keep=1")
    assert "step-00000099 is not whole (state.json is damaged)" in text
    assert [one.name for one in checkpoints.iterdir()] == ["step-00000020"]
    same_result(world, "one-kept")


@pytest.mark.parametrize("content", ["null", "[]", '{"files": null}', "{", "\x00"])
def test_a_manifest_of_other_things_is_passed_over(world, tmp_path, content):
    newest = sorted((world / "runs/whole/checkpoints").iterdir())[-1]
    shutil.copytree(newest, tmp_path / newest.name)
    (tmp_path / newest.name / MANIFEST).write_text(content)
    with pytest.warns(UserWarning, match="is not whole"):
        assert find(tmp_path) is None


@pytest.mark.parametrize("lost", [MODEL, CONFIG, MANIFEST, STATE])
def test_a_checkpoint_without_one_of_its_files_is_none(world, tmp_path, lost):
    newest = sorted((world / "runs/whole/checkpoints").iterdir())[-1]
    shutil.copytree(newest, tmp_path / newest.name)
    assert find(tmp_path).step == int(newest.name[5:])
    (tmp_path / newest.name / lost).unlink()
    with pytest.warns(UserWarning, match="is not whole"):
        assert find(tmp_path) is None


@pytest.fixture
def saved(tmp_path) -> Saved:
    """Of a model of one layer, before the optimizer moved anything."""
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / MODEL)
    save_file({}, tmp_path / OPTIMIZER)
    return Saved(tmp_path, 1, StreamState(1, {}, {}), {}, Skips(), [], {})


def test_a_checkpoint_of_another_model_is_refused_and_lays_nothing_over(saved):
    own = nn.Linear(3, 2)
    saved.load_weights(own)
    assert (own.weight == 1).all() and (own.bias == 1).all()
    message = r"is of another model \(2 trained tensors of its own, {} here\); set checkpoint"
    for other, number in ((nn.Linear(2, 2), 2), (nn.Linear(3, 2, bias=False), 1)):
        before = other.weight.clone()
        with pytest.raises(ValueError, match=message.format(number)):
            saved.load_weights(other)
        assert torch.equal(other.weight, before)


class Bomb:
    """A pickle that makes a file where it is read."""

    def __init__(self, file: Path):
        self._file = file

    def __reduce__(self):
        return Path.touch, (self._file,)


def test_code_among_the_random_numbers_of_a_checkpoint_does_not_run(saved, tmp_path):
    """A digest holds for whoever made the file as for us."""
    optimizer = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    spread = Spread({}, SimpleNamespace(optimizer=optimizer))
    torch.save([Bomb(tmp_path / "ran")], tmp_path / RANDOM)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        saved.load_moments(spread, 0)
    assert not (tmp_path / "ran").exists()


def tell_all(run: Path, number: signal.Signals) -> None:
    """The process that has locked the run's folder, and its loader workers."""
    holder = int(beside(run).read_text().split()[1])
    os.killpg(os.getpgid(holder), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_a_run_saves_at_the_end_of_its_step_and_goes_on(world, number):
    """All its processes are told, as a scheduler does and then a launcher."""
    name = f"told-{number.name}"
    process = launched(world, name, python=warm_python())
    metrics = world / "runs" / name / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    tell_all(world / "runs" / name, number)
    time.sleep(0.05)
    tell_all(world / "runs" / name, number)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 75, text
    step = int((world / "runs" / name / "interrupted").read_text())
    assert f"told to stop after step {step}; the same command goes on from there" in text
    assert find(world / "runs" / name / "checkpoints").step == step
    assert f"goes on after step {step}" in finished(world, name)
    assert not (world / "runs" / name / "interrupted").exists()
    same_result(world, name)


TELLING = """
import os
from pathlib import Path
from trainer import Evaluation, hookimpl

class Telling(Evaluation):
    kind = "telling"

    def run(self, student, teacher):
        if os.environ.get("RANK", "0") == "0":
            left, number = map(int, Path("measures-left").read_text().split())
            Path("measures-left").write_text(f"{left - 1} {number}")
            if left == 0:
                os.kill(os.getpid(), number)
        yield "value", 1.0

@hookimpl
def trainer_evaluations():
    return [Telling]
"""
MEASURED = [  # before, after steps 6, 12, 18, and after the last
    "plugins=[telling_measure.py]",
    "evaluations={telling: {kind: telling, every: 6}, colour: {kind: zero_shot, every: 6, "
    "shards: runs/world/labels/colour/0.tar}}",
]


@pytest.fixture(scope="module")
def measured(world) -> Path:
    (world / "configs/telling_measure.py").write_text(TELLING)
    (world / "measures-left").write_text("99 0")
    finished(world, "measured", *MEASURED)
    return world


@pytest.mark.parametrize(
    ("number", "step", "ranks"),
    [(1, 6, 1), (2, 12, 1), (4, 24, 1), pytest.param(1, 6, 2, marks=pytest.mark.slow)],
)
def test_told_to_stop_while_it_measures_a_run_leaves_before_the_next_measure(
    measured, number, step, ranks
):
    """Going on, it measures again. A checkpoint is due after step 12, not after 6; the last
    measures come when the model is exported.
    """
    name = f"told-in-measure-{number}-{ranks}"
    (measured / "measures-left").write_text(f"{number} {signal.SIGTERM:d}")
    python = warm_python()
    process = launched(measured, name, *MEASURED, ranks=ranks, python=python)
    text = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert f"told to stop after step {step}; the same command goes on from there" in text
    run = measured / "runs" / name
    assert int((run / "interrupted").read_text()) == step == find(run / "checkpoints").step
    (measured / "measures-left").write_text("99 0")
    assert f"goes on after step {step}" in finished(measured, name, *MEASURED, ranks=ranks)
    if ranks == 1:
        same_result(measured, name, "measured")
        assert sum("telling" in line for line in (run / "metrics.jsonl").open()) == 5


@pytest.mark.parametrize(("number", "step"), [(2, 12), (4, 20)])
def test_killed_while_it_measures_a_run_ends_as_if_nothing_had_been(measured, number, step):
    """Also after the last step, beside an exported model."""
    name = f"killed-in-measure-{number}"
    (measured / "measures-left").write_text(f"{number} {signal.SIGKILL:d}")
    process = launched(measured, name, *MEASURED, python=warm_python())
    process.communicate(timeout=120)
    run = measured / "runs" / name
    assert process.returncode != 0 and not (run / "report.html").exists()
    assert (run / "model").exists() == (number == 4)
    (measured / "measures-left").write_text("99 0")
    text = finished(measured, name, *MEASURED)
    assert f"goes on after step {step}" in text or f"goes on after step {step - 4}" in text
    same_result(measured, name, "measured")


@pytest.mark.slow
def test_one_of_two_processes_is_told_to_stop_and_both_do(world):
    process = launched(world, "told-one", ranks=2)
    metrics = world / "runs/told-one/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    ranks = [one for one in children if "trainer" in one.cmdline()]
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert "told to stop after step" in text
    assert "goes on after step" in finished(world, "told-one", ranks=2)


def test_another_configuration_begins_anew_and_sets_the_old_run_aside(world):
    killed(world, "changed", 4)
    text = finished(world, "changed", "optimizer.lr=5.0e-4")
    assert "an earlier run, of another optimizer.lr, is kept as runs/changed.1" in text
    assert "goes on" not in text and (world / "runs/changed.1/checkpoints").exists()


def test_a_run_that_is_never_to_go_on_begins_anew_and_sets_the_old_one_aside(world):
    killed(world, "never", 4)
    text = finished(world, "never", "checkpoint.resume=never")
    assert "an earlier run is kept as runs/never.1" in text and "goes on" not in text
    assert (world / "runs/never.1/checkpoints").exists()
    same_result(world, "never")


def test_told_to_stop_before_its_first_step_a_run_saves_after_it(world):
    """Also where no checkpoints were asked for."""
    options = ["checkpoint.every=null", "checkpoint.keep=1"]
    process = launched(world, "soon", *options, python=warm_python())
    while not (world / "runs/soon/config.yaml").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    tell_all(world / "runs/soon", signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "told to stop after step 1; the same command" in text
    assert [one.name for one in (world / "runs/soon/checkpoints").iterdir()] == ["step-00000001"]
    assert "goes on after step 1" in finished(world, "soon", *options)
    same_result(world, "soon")


def test_a_run_that_is_never_to_go_on_tells_what_to_leave_out_that_it_does(world):
    process = launched(world, "told-never", "checkpoint.resume=never", python=warm_python())
    while not (world / "runs/told-never/config.yaml").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    tell_all(world / "runs/told-never", signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert (
        "told to stop after step 1; without checkpoint.resume=never the same command goes on from "
        "there" in text
    )
    assert "goes on after step 1" in finished(world, "told-never")


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_cut_off_and_one_where_two_were(world):
    killed(world, "one-then-two", 8)
    assert "goes on after step" in finished(world, "one-then-two", ranks=2)
    killed(world, "two-then-one", 8, ranks=2)
    assert "goes on after step" in finished(world, "two-then-one")
    for name in ("one-then-two", "two-then-one"):
        for one, other in zip(*(losses(world, run) for run in (name, "whole")), strict=True):
            assert one == pytest.approx(other, rel=1e-3)


def losses(folder: Path, name: str) -> list[list[float]]:
    rows = map(json.loads, (folder / "runs" / name / "metrics.jsonl").open())
    return [
        [row[key] for key in sorted(row) if key.startswith(("keep/", "names/", "faces/"))]
        for row in rows
    ]


def test_no_name_is_in_a_checkpoint(world):
    roster = (world / "runs/world/rosters/forget.csv").read_text().splitlines()[1:]
    names = [row.split(",")[1] for row in roster]
    assert len(names) == 2
    files = [path for path in (world / "runs/whole/checkpoints").rglob("*") if path.is_file()]
    assert len(files) == 2 * 6
    for path in files:
        data = path.read_bytes().lower()
        assert not any(name.encode().lower() in data for name in names)


@pytest.fixture
def small_disk(world, request):
    """A folder of runs on a disk of so many megabytes."""
    folder = world / "runs" / f"disk-{request.param}"
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={request.param}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder]).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("small_disk", [76], indirect=True)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(world, small_disk, ranks):
    name = f"{small_disk.name}/inner"
    process = launched(world, name, "checkpoint.keep=5", ranks=ranks, python=warm_python())
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    (line,) = [one for one in text.splitlines() if "No space left on device" in one]
    saved = find(small_disk / "inner/checkpoints")
    assert line.startswith(f"the checkpoint of step {saved.step + 4} was not written: ")
    assert line.endswith(
        f"; free some space, then the same command goes on from runs/{name}/checkpoints/"
        f"step-{saved.step:08d}"
    )
    assert not list((small_disk / "inner/checkpoints").glob("*.tmp"))
    assert ranks > 1 or "Traceback" not in text  # torch's launcher has its own to say
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    text = finished(world, name, "checkpoint.keep=5", ranks=ranks)
    assert f"goes on after step {saved.step}" in text
    if ranks == 1:
        same_result(world, name)
    else:
        finished(world, "of-two", ranks=ranks)
        same_result(world, name, "of-two")


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_disk_too_full_for_metrics_or_the_model_ends_the_run_in_one_line(world, small_disk):
    """Its loader's workers, who outlive signals, do not hold it back."""
    name = f"{small_disk.name}/inner"
    process = launched(world, name, "checkpoint.every=null", python=warm_python())
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "process 0 cannot write: " in text and "No space left on device" in text
    assert "free some space, then give the same command again" in text and "Traceback" not in text
