"""What fails on one of two processes, and what both say and do then: real processes over gloo."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, demo_without_attack
from tests.distributed.test_strategies import STRATEGIES, some, trained
from tests.trainer.runs.test_checkpoint import finished, launched
from tests.warm_python import warm_python
from trainer.runs.metrics import cut_metrics, failures_in
from trainer.system.failures import cause

BREAKING = '''
import math
import os

import torch
from trainer import Evaluation, Objective, Pair, Tower, cosine_distance, hookimpl, share_rows

ALONE = os.environ.get("RANK") == "1"


class Broken(Evaluation):
    """Raises on every process."""

    kind = "broken"

    def run(self, student, teacher):
        yield "rows", float(len(student.encode_text(["one", "two"])))
        {}["Somebody's Name"]


class BrokenAlone(Evaluation):
    """Raises on one process while the other goes on to the next collective."""

    kind = "broken_alone"

    def run(self, student, teacher):
        rows = student.encode_text(["one", "two", "three"])
        if ALONE:
            raise OSError(5, "Input/output error")
        yield "sum", float(share_rows(rows, lambda some: some, block=1).sum())


class NotFinite(Objective):
    """Its loss is no number, on one process alone, from the third step on."""

    kind = "not_finite"
    trains = frozenset({Tower.TEXT})
    steps = 0

    def pair(self, clean, turn, rng):
        return clean.text and Pair(clean.text, teacher_text=clean.text)

    def loss_fn(self, teacher):
        def loss(student, taught):
            NotFinite.steps += 1
            far = cosine_distance(student.text, taught.text)
            return {"far": far * math.nan if ALONE and NotFinite.steps > 2 else far}

        return loss


class Steep(NotFinite):
    """Its loss is a number, its gradient none."""

    kind = "steep"

    def loss_fn(self, teacher):
        return lambda student, taught: {"far": (0 * student.text).sum().abs().sqrt()}


class Refusing(NotFinite):
    """A mistake that one process finds alone, or all."""

    kind = "refusing"

    class Options(NotFinite.Options):
        on_all: bool = False

    def loss_fn(self, teacher):
        def loss(student, taught):
            if ALONE or self.options.on_all:
                raise ValueError("no use of what this process read")
            return {"far": cosine_distance(student.text, taught.text)}

        return loss


class Naming(NotFinite):
    """Looks up somebody whom it does not know."""

    kind = "naming"

    class Options(NotFinite.Options):
        at: str

    def pair(self, clean, turn, rng):
        if self.options.at == "pair":
            {}["Somebody's Name"]
        return super().pair(clean, turn, rng)

    def loss_fn(self, teacher):
        def loss(student, taught):
            if self.options.at == "list":
                [].index("Somebody's Name")
            raise KeyError("Somebody's Name")

        return loss


class Hungry(NotFinite):
    """Wants more shared memory than there is."""

    kind = "hungry"

    def pair(self, clean, turn, rng):
        torch.UntypedStorage._new_shared(1 << 50)


@hookimpl
def trainer_evaluations():
    return [Broken, BrokenAlone]


@hookimpl
def trainer_objectives():
    return [NotFinite, Steep, Refusing, Hungry, Naming]
'''
BREAKS = ["plugins=[../breaking.py]", "timeout_seconds=600", "steps=6", "checkpoint.every=2"]


@pytest.fixture(scope="module")
def world(small_world) -> Path:
    demo_without_attack(small_world, "small")
    (small_world / "breaking.py").write_text(BREAKING)
    return small_world


def test_an_evaluation_that_raises_on_one_process_or_all_ends_alone_and_the_run_goes_on(world):
    """Much sooner than `timeout_seconds`: nobody waits for who failed."""
    text = finished(
        world, "broken", *BREAKS, "evaluations.on_all={kind: broken, every: 4}",
        "evaluations.on_one={kind: broken_alone, every: 4}", ranks=2,
    )  # fmt: skip
    folder = world / "runs/broken"
    results = json.loads((folder / "results.json").read_text())
    assert {one["evaluation"] for one in results["failed"]} == {
        "broken/on_all", "broken_alone/on_one",
    }  # fmt: skip
    for name, why in (
        ("broken/on_all", "KeyError (breaking.py:18)"),
        ("broken_alone/on_one", "OSError: Input/output error (breaking.py:29), on process 1 alone"),
    ):
        told = [one for one in results["failed"] if one["evaluation"] == name]
        assert [one["step"] for one in told] == [0, 4, 6]
        assert {one["cause"] for one in told} == {why}
        for step in (0, 4, 6):
            line = f"step {step}: {name} was not measured: {why}; the run goes on"
            assert text.count(line) == 1
        assert f"{name} at step 0, 4, 6" in " ".join(text.split())
        assert name in (folder / "report.html").read_text()
    assert "zero_shot/colour/accuracy" in results["after"]
    assert not [name for name in results["after"] if name.startswith("broken")]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "keep/text" in row] == [4, 6]
    for path in (folder / "results.json", folder / "metrics.jsonl", folder / "report.html"):
        assert "Somebody" not in path.read_text()
    assert "Somebody" not in text


@pytest.mark.parametrize("on_all", [False, True], ids=["one", "all"])
def test_a_mistake_that_processes_find_is_told_once_whoever_finds_it(world, on_all):
    objective = f"objectives.odd={{kind: refusing, batch_size: 8, on_all: {on_all}}}"
    name = f"refused-{on_all}"
    process = launched(world, name, *BREAKS, objective, ranks=2, python=warm_python())
    text = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert text.count("no use of what this process read") == 1 and "in teach" not in text


@pytest.mark.parametrize(
    ("at", "workers", "said"),
    [
        ("pair", 0, "KeyError: ("), ("pair", 1, "KeyError: ("), ("loss", 0, "KeyError: ("),
        ("list", 0, "ValueError: ("),
    ],
)  # fmt: skip
def test_an_error_in_a_plugin_is_told_with_its_place_and_without_a_name(
    world, monkeypatch, at, workers, said
):
    naming = [f"objectives.odd={{kind: naming, batch_size: 8, at: {at}}}"]
    naming += [f"data.workers={workers}"]
    name = f"naming-{at}-{workers}"
    process = launched(world, name, *BREAKS, *naming, python=warm_python())
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "Somebody" not in text
    assert re.search(rf'breaking.py", line \d+, in {"pair" if at == "pair" else "loss"}\n', text)
    assert said in text
    if workers:
        monkeypatch.setenv("CLIP_UNLEARN_TRACEBACK", "1")
        process = launched(world, name, *BREAKS, *naming, python=warm_python())
        assert "Somebody's Name" in process.communicate(timeout=120)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_full_shared_memory_is_told_as_such_with_its_mend(world, workers):
    hungry = ["objectives.odd={kind: hungry, batch_size: 8}", f"data.workers={workers}"]
    process = launched(world, f"hungry-{workers}", *BREAKS, *hungry, python=warm_python())
    text = process.communicate(timeout=120)[0]
    (line,) = [one for one in text.splitlines() if one.startswith("process 0")]
    assert line.startswith("process 0 has no room in /dev/shm: ")
    assert "unable to allocate shared memory(shm)" in line
    assert "docker: --shm-size 8g" in line and "data.workers=0" in line
    assert process.returncode == 1 and "Traceback" not in text


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (1, "is not finite after the last step; nothing was exported. Lower optimizer.lr"),
        (4, "at step 2; nothing was updated or exported, there is no checkpoint. Lower"),
    ],
)
def test_weights_that_are_no_numbers_are_neither_kept_nor_exported(world, steps, said):
    name = f"steep-{steps}"
    odd = [*BREAKS, "objectives.odd={kind: steep, batch_size: 8}", f"steps={steps}"]
    odd += ["optimizer.warmup_steps=0", "checkpoint.every=1"]
    process = launched(world, name, *odd, python=warm_python())
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and said in text and "Traceback" not in text
    assert not list((world / "runs" / name).glob("checkpoints/step-*"))
    assert not (world / "runs" / name / "model").exists()


def test_a_loss_that_is_no_number_on_one_of_two_processes_stops_both_and_is_named_once(world):
    objective = "objectives.odd={kind: not_finite, batch_size: 8}"
    process = launched(world, "odd", *BREAKS, objective, ranks=2, python=warm_python())
    text = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert text.count("the loss odd/far is nan at step 3; nothing was updated or exported") == 1
    assert "step-00000002 is the last checkpoint" in text and "clean/00000.tar" in text
    assert "Traceback (most recent call last)" not in text.split("the loss odd/far")[0]
    assert not (world / "runs/odd/model").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", some("fsdp2", "zero3", of=("fsdp2", "zero1", "zero2", "zero3"))
)
def test_what_fails_on_one_process_ends_alike_under_each_strategy(world, strategy):
    """An evaluation, after which the run goes on; then a loss that is no number."""
    demo_without_attack(world, "strategies")
    odd = [*BREAKS, "objectives.odd={kind: not_finite, batch_size: 8}"]
    odd += ["evaluations.alone={kind: broken_alone, every: 2}"]
    text = trained(world, f"odd-{strategy}", *STRATEGIES[strategy], *odd, ends_as=1)
    assert "broken_alone/alone" in text and "Input/output error" in text
    assert text.count("the loss odd/far is nan at step 3; nothing was updated or exported") == 1
    assert "step-00000002 is the last checkpoint" in text
    assert not (world / f"runs/odd-{strategy}/model").exists()


def test_a_cause_is_one_line_and_quotes_no_name_that_was_looked_up(tmp_path):
    def raised(work) -> str:
        with pytest.raises(Exception) as caught:
            work()
        return cause(caught.value)

    def refuse():
        raise ValueError("a roster of 3 people is too small\nand more")

    name = "Jane Roe"
    assert raised(refuse).startswith("ValueError: a roster of 3 people is too small (test_failures")
    for quotes in (
        lambda: {}[name], lambda: [].index(name), lambda: int(name), lambda: float(name),
        lambda: (tmp_path / name).read_text(), lambda: getattr(name, name),
    ):  # fmt: skip
        assert "Jane" not in raised(quotes) and "Error" in raised(quotes)
    assert raised(lambda: (tmp_path / name).read_text()).startswith(
        "FileNotFoundError: No such file or directory ("
    )


def test_failures_before_a_kill_are_still_told_of_when_the_run_went_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "failed": {"zero_shot/colour": "OSError"}} for step in (0, 4, 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cut_metrics(path, 6)
    assert failures_in(path) == [
        {"evaluation": "zero_shot/colour", "step": step, "cause": "OSError"} for step in (0, 4)
    ]
    assert failures_in(REPOSITORY / "nothing") == []


def test_metrics_that_a_power_loss_left_unreadable_are_kept_up_to_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(json.dumps({"step": step}).encode() + b"\n" for step in range(3))
    for lost in (bytes(4096), bytes(4096) + b'"step": 3}\n', b"\xff\n", b'{"step": 3'):
        path.write_bytes(whole + lost + b'{"step": 4}\n')
        cut_metrics(path, 6)
        assert path.read_bytes() == whole
