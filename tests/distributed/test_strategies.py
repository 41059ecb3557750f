"""One result under every strategy: real processes, real DeepSpeed, gloo."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import REPOSITORY, demo_without_attack
from tests.warm_python import warm_python
from trainer.system.interruption import EXIT_CODE, MARKER

STEPS = 30
SMALL = [
    f"steps={STEPS}", "log_every=1", "checkpoint.every=10", "data.workers=0", "data.lanes=8",
    "objectives.keep.batch_size=8", "objectives.names.batch_size=16",
    "objectives.faces.batch_size=8", "optimizer.warmup_steps=2",
]  # fmt: skip
TWO = ["--num_processes", "2", "--mixed_precision", "no"]
FOUR_PARTS = ["--gradient_accumulation_steps", "4"]
# As launch/compiled.yaml has it, beside any launch file; but the graphs of torch.compile are run as
# they are, which needs no compiler of C++.
REGIONAL = ["--dynamo_use_dynamic", "--dynamo_use_regional_compilation"]
COMPILED = ["--dynamo_backend", "aot_eager", *REGIONAL]
AS_COMPILED = {
    "ACCELERATE_DYNAMO_BACKEND": "aot_eager",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
}
STRATEGIES = {  # the launch file, and what is said beside it
    "ddp": ("ddp.yaml", TWO),
    "fsdp2": ("fsdp2.yaml", TWO),
    "zero1": ("zero1.yaml", TWO),
    "zero2": ("zero2.yaml", TWO),
    "zero3": ("zero3.yaml", TWO),
    "zero2-accumulated": ("zero2.yaml", [*TWO, *FOUR_PARTS]),
}


PROGRAM = ["-m", "trainer"]
LONG = [pytest.mark.slow, pytest.mark.long]


def some(*names: str, of: tuple[str, ...] = ("ddp", "fsdp2", "zero1", "zero2", "zero3")) -> list:
    """All of these strategies; of the slow tests .ci/run takes some."""
    return [one if one in names else pytest.param(one, marks=pytest.mark.long) for one in of]


def trained(
    folder: Path,
    name: str,
    file: str,
    options: list[str],
    *overrides: str,
    ends_as: int = 0,
    program: list[str] = PROGRAM,
) -> str:
    """Train under a launch file, to the end or until it leaves; what was printed."""
    launcher = [warm_python(), "-m", "accelerate.commands.launch"]
    where = ["--config_file", str(REPOSITORY / "launch" / file), *options]
    run = [*program, "train", "configs/strategies.yaml", f"output=runs/{name}"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    environment["PYTHON_EXEC"] = warm_python()
    if "--gradient_accumulation_steps" in options:
        environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = options[-1]
    if "--dynamo_backend" in options:  # which the launcher does not hand on to DeepSpeed
        environment |= AS_COMPILED
    done = subprocess.run(
        [*launcher, *where, *run, *SMALL, *overrides],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    # Launchers make 1 of every code but 0.
    assert bool(done.returncode) == bool(ends_as), done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(folder: Path, name: str) -> list[dict[str, float]]:
    rows = map(json.loads, (folder / "runs" / name / "metrics.jsonl").open())
    of = ("keep/", "names/", "faces/", "contrast/")
    found = [{key: row[key] for key in row if key.startswith(of)} for row in rows]
    return [row for row in found if row]


def total(steps: list[dict[str, float]]) -> float:
    return sum(sum(one.values()) for one in steps)


def assert_same(
    folder: Path,
    name: str,
    other: str = "one",
    times: float = 1,
    rounding: float = 1e-6,
    key_bias: bool = True,
) -> None:
    """Losses of each step and the exported weights. The first losses are zero but for rounding.

    times: as much of it as ordinarily. rounding: of a loss, however small; float32 tells cosines
    near one apart in steps of 1e-7.
    """
    steps = losses(folder, name), losses(folder, other)
    assert len(steps[0]) == len(steps[1]) == STEPS
    for own, wanted in zip(*steps, strict=True):
        assert own == pytest.approx(wanted, rel=1e-5 * times, abs=rounding * times)
    assert_weights(folder, name, other, 1e-5 * times, key_bias)


def assert_weights(folder: Path, name: str, other: str, atol: float, key_bias: bool = True) -> None:
    """key_bias: that of attention's keys too. It moves all scores of a query alike, so that a
    softmax does not see it, and its gradient is nothing but rounding.
    """
    paths = [folder / "runs" / one / "model/open_clip_model.safetensors" for one in (name, other)]
    weights, wanted = map(load_file, paths)
    assert weights.keys() == wanted.keys()
    for key, tensor in weights.items():
        differences = (tensor - wanted[key]).abs()
        if key.endswith("in_proj_bias") and not key_bias:
            differences = differences.view(3, -1)[[0, 2]]  # of queries, keys and values
        assert differences.max() <= atol, key


def assert_measures(folder: Path, name: str, other: str) -> set[str]:
    """Those of both moments, which are given; a picture at a near tie may fall either way."""
    paths = [folder / "runs" / one / "results.json" for one in (name, other)]
    found, wanted = (json.loads(path.read_text()) for path in paths)
    for moment in ("before", "after"):
        assert found[moment].keys() == wanted[moment].keys()
        for measure, value in wanted[moment].items():
            if measure.endswith("_roc"):
                continue  # the area below it is among the others
            # Of two people and three an AUC has steps of a sixth, and a tie is half of one.
            nearest = 0.09 if measure.startswith("leakage/") else 0.03
            assert found[moment][measure] == pytest.approx(value, abs=nearest, nan_ok=True), measure
    return set(found["after"])


@pytest.fixture(scope="module")
def world(small_world) -> Path:
    """The demo without its attack, trained in one process."""
    demo_without_attack(small_world, "strategies")
    trained(small_world, "one", "cpu.yaml", [])
    return small_world


# Of fewer samples rounding counts for more than 1e-5 of a loss, and the key's bias, whose gradient
# is nothing but rounding, is pulled elsewhere.
LARGER = [
    "objectives.keep.batch_size=16", "objectives.names.batch_size=32",
    "objectives.faces.batch_size=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def larger(world) -> str:
    """In one process."""
    trained(world, "larger", "cpu.yaml", [], *LARGER)
    return "larger"


NOTING_GRADIENTS = """
import hashlib, os, torch
from trainer.cli import main

update = torch.optim.AdamW.step

def noting(self, *args, **kwargs):
    digest = hashlib.sha256()
    for group in self.param_groups:
        for parameter in group["params"]:
            digest.update(parameter.grad.contiguous().numpy().tobytes())
    with open(f"gradients-{os.environ['RANK']}", "a") as file:
        file.write(digest.hexdigest() + "\\n")
    return update(self, *args, **kwargs)

torch.optim.AdamW.step = noting
main()
"""


def test_thirty_steps_of_ddp_give_those_of_one_process_and_all_ranks_the_same_gradients(
    world, larger
):
    """Under the other strategies a gradient is there once, in parts."""
    (world / "noting.py").write_text(NOTING_GRADIENTS)
    trained(world, "ddp", *STRATEGIES["ddp"], *LARGER, program=["noting.py"])
    assert_same(world, "ddp", larger, rounding=1e-7)
    first, second = ((world / f"gradients-{rank}").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == STEPS


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "ddp"])
def test_thirty_steps_give_the_losses_and_weights_of_one_process(world, larger, name):
    text = trained(world, name, *STRATEGIES[name], *LARGER)
    assert_same(world, name, larger, rounding=1e-7)
    assert "built successfully" not in text  # DeepSpeed's words when it has compiled something


CONTRASTED = [*LARGER, "objectives.contrast={kind: contrastive, batch_size: 16, weight: 0.1}"]


@pytest.fixture(scope="module")
def contrasted(world) -> list[str]:
    """In one process: CLIP's own loss, which trains its temperature too. Then how it is told."""
    trained(world, "contrasted", "cpu.yaml", [], *CONTRASTED)
    exported = world / "runs/contrasted/model/open_clip_model.safetensors"
    original = REPOSITORY / "plugins/fictitious/clip/open_clip_model.safetensors"
    assert load_file(exported)["logit_scale"] != load_file(original)["logit_scale"]
    return CONTRASTED


@pytest.mark.parametrize(
    "name",
    [
        "fsdp2",
        "zero2",
        *(pytest.param(one, marks=LONG) for one in ("ddp", "zero1")),
        pytest.param("zero3", marks=pytest.mark.slow),
    ],
)
def test_negatives_of_all_processes_and_a_temperature_that_learns_give_the_same(
    world, contrasted, name
):
    """The temperature is one number, which DeepSpeed cannot cut into parts."""
    run = f"{name}-contrasted"
    trained(world, run, *STRATEGIES[name], *contrasted)
    # Its logits are up to a hundred, which float32 tells apart in steps of 1e-5.
    assert_same(world, run, "contrasted", rounding=1e-5)


PULLED = [*LARGER, "optimizer.anchor=0.05", "optimizer.clip=2"]
GROUPS = {name: f"runs/world/rosters/attack_{name}.csv" for name in ("forget", "unseen", "unknown")}
FORGET = GROUPS["forget"]
NAMES = {"distractors": "runs/world/names/distractors.txt", "candidates": 30}
CLEAN = {"shards": "runs/world/clean/*.tar"}
EVALUATIONS = {  # one of each kind, small
    "identity_inference": {"groups": GROUPS, **NAMES, "variants": ["initials"]},
    "encoder_swap": {"groups": {"forget": FORGET}, **NAMES},
    "text_inference": {"groups": GROUPS, "gibberish": 60},
    "neighbours": {"forget": FORGET, "kept": [GROUPS["unseen"]], **NAMES},
    "face_probe": {"groups": GROUPS, "shots": [1]},
    "leakage": {"forgotten": FORGET, "unknown": GROUPS["unknown"]},
    "similarity": {"roster": "runs/world/rosters/forget.csv", "target": "a person", **CLEAN},
    "zero_shot": {"shards": "runs/world/labels/colour/0.tar"},
    "retrieval": CLEAN,
}


def gradient_norms(folder: Path, name: str) -> list[float]:
    """Of each step, before it is clipped."""
    rows = map(json.loads, (folder / "runs" / name / "metrics.jsonl").open())
    return [row["gradient_norm"] for row in rows if "gradient_norm" in row]


@pytest.fixture(scope="module")
def pulled(world, larger) -> list[str]:
    """In one process, named first: the pull to the original weights, a gradient that is clipped in
    some of the steps, every evaluation. Then how it is told.
    """
    own = {name: {"kind": name, **options} for name, options in EVALUATIONS.items()}
    told = [*PULLED, f"evaluations={json.dumps(own)}"]
    trained(world, "pulled", "cpu.yaml", [], *told)
    assert losses(world, "pulled")[-1] != losses(world, larger)[-1]
    norms = gradient_norms(world, "pulled")
    assert min(norms) < 2 < max(norms)
    return told


@pytest.mark.slow
@pytest.mark.parametrize("name", some("fsdp2", "zero3"))
def test_the_pull_clipping_and_every_evaluation_give_what_they_do_in_one_process(
    world, pulled, name
):
    run = f"{name}-pulled"
    trained(world, run, *STRATEGIES[name], *pulled)
    # A direction's length is 1 however short the way: rounding counts for more in the first steps.
    assert_same(world, run, "pulled", times=10, key_bias=False)
    assert gradient_norms(world, run) == pytest.approx(gradient_norms(world, "pulled"), rel=1e-3)
    measures = assert_measures(world, run, "pulled")
    assert {measure.partition("/")[0] for measure in measures} == EVALUATIONS.keys()


def test_four_parts_of_a_step_give_the_step(world):
    trained(world, "accumulated", "cpu.yaml", FOUR_PARTS)
    assert_same(world, "accumulated")


@pytest.mark.slow
@pytest.mark.parametrize("name", some("zero3", of=("ddp", "fsdp2", "zero1", "zero3")))
def test_four_parts_of_a_step_give_the_step_under_each_strategy(world, larger, name):
    file, options = STRATEGIES[name]
    trained(world, f"{name}-accumulated", file, [*options, *FOUR_PARTS], *LARGER)
    assert_same(world, f"{name}-accumulated", larger, rounding=1e-7)


TELLING_RECOMPILES = """
import torch
from trainer.cli import main
from trainer.system import progress_bars

progress_bars.SECONDS = 0  # a line of each step, or a short run has but its last
torch._logging.set_logs(recompiles=True)
main()
"""
NOTICE = "Recompiling function"
FROM_STEP_3 = re.compile(rf"\b([3-9]|\d\d)/{STEPS} ")


@pytest.mark.parametrize(
    "file",
    [
        "compiled.yaml",  # DDP
        pytest.param("fsdp2.yaml", marks=pytest.mark.slow),
        pytest.param("zero2.yaml", marks=LONG),
    ],
)
def test_compiled_blocks_give_the_same_and_are_compiled_in_the_first_steps_alone(world, file):
    (world / "telling.py").write_text(TELLING_RECOMPILES)
    name = f"compiled-{file.removesuffix('.yaml')}"
    text = trained(world, name, file, [*TWO, *COMPILED], program=["telling.py"])
    assert_same(world, name)
    assert NOTICE in text
    steps = {int(one) for one in FROM_STEP_3.findall(text)}
    assert steps == set(range(3, STEPS + 1))
    assert NOTICE not in text[FROM_STEP_3.search(text).start() :]


@pytest.mark.slow
def test_zero3_is_refused_where_blocks_are_compiled(world):
    file, options = STRATEGIES["zero3"]
    text = trained(world, "compiled-zero3", file, [*options, *COMPILED], ends_as=1)
    assert "torch.compile does not go with ZeRO-3" in text


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler of C++")
def test_compiled_for_the_processor_blocks_give_the_same(world):
    trained(world, "inductor", "compiled.yaml", TWO)
    assert_same(world, "inductor")


RECOMPUTED = "memory.activation_checkpointing=true"


@pytest.mark.slow
@pytest.mark.long
def test_compiled_blocks_that_are_computed_again_give_the_same(world):
    trained(world, "compiled-recomputed", "compiled.yaml", [*TWO, *COMPILED], RECOMPUTED)
    assert_same(world, "compiled-recomputed")


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("one", [RECOMPUTED]),
        ("one", ["memory.teacher=offloaded"]),
        pytest.param("ddp", ["memory.teacher=sharded"], marks=pytest.mark.slow),
        ("zero3", [RECOMPUTED, "memory.teacher=sharded"]),
        ("fsdp2", [RECOMPUTED, "memory.teacher=offloaded"]),
    ],
)
def test_what_saves_memory_changes_nothing(world, name, memory):
    run = "-".join([name, *memory]).replace("memory.", "")
    trained(world, run, *(STRATEGIES | {"one": ("cpu.yaml", [])})[name], *memory)
    assert_same(world, run)


SENDING_FEW = """
from trainer.strategies import zero
from trainer.cli import main

zero.GATHERED = 100_000  # values at a time: a save takes many turns
main()
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("zero3", "one"),
        ("zero2", "fsdp2"),
        ("fsdp2", "zero3"),
        pytest.param("ddp", "zero1", marks=LONG),
    ],
)
def test_a_run_begun_under_one_strategy_goes_on_under_another(world, first, then):
    """And on another number of processes; it leaves by its own limit of time."""
    name = f"{first}-then-{then}"
    strategies = STRATEGIES | {"one": ("cpu.yaml", [])}
    (world / "few.py").write_text(SENDING_FEW)
    stop = "checkpoint.stop_after_minutes=0.01"
    trained(world, name, *strategies[first], stop, ends_as=EXIT_CODE, program=["few.py"])
    step = int((world / "runs" / name / MARKER).read_text())
    assert 0 < step < STEPS
    text = trained(world, name, *strategies[then])
    assert f"goes on after step {step}" in text
    assert_same(world, name)


MUON = [*LARGER, "optimizer.kind=muon"]


def test_muon_begun_in_parts_goes_on_in_one_process_and_gives_the_same(world):
    trained(world, "muon", "cpu.yaml", [], *MUON)
    stop = "checkpoint.stop_after_minutes=0.01"
    trained(world, "fsdp2-muon", *STRATEGIES["fsdp2"], *MUON, stop, ends_as=EXIT_CODE)
    step = int((world / "runs/fsdp2-muon" / MARKER).read_text())
    assert f"goes on after step {step}" in trained(world, "fsdp2-muon", "cpu.yaml", [], *MUON)
    assert_same(world, "fsdp2-muon", "muon")


@pytest.mark.slow
@pytest.mark.parametrize("name", some("fsdp2", "zero2"))
def test_a_run_goes_on_under_its_strategy_on_another_number_of_processes(world, name):
    """From two to one, and from one to two."""
    run, file, step = f"{name}-2-1-2", f"{name}.yaml", 0
    two, one = (["--num_processes", count, "--mixed_precision", "no"] for count in "21")
    stop = "checkpoint.stop_after_minutes=0.01"
    for ranks in (two, one):
        text = trained(world, run, file, ranks, stop, ends_as=EXIT_CODE)
        assert ("goes on after" in text) == bool(step)
        before, step = step, int((world / "runs" / run / MARKER).read_text())
        assert before < step < STEPS
    assert f"goes on after step {step}" in trained(world, run, file, two)
    assert_same(world, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("fsdp2", "zero2"))
def test_in_bf16_losses_and_weights_are_near(world, larger, name):
    """Each to within 1e-2, absolute; all together to within a hundredth of themselves."""
    trained(world, f"{name}-bf16", f"{name}.yaml", TWO[:2], *LARGER)
    found, exact = losses(world, f"{name}-bf16"), losses(world, larger)
    for own, wanted in zip(found, exact, strict=True):
        assert own == pytest.approx(wanted, abs=1e-2)
    assert total(found) == pytest.approx(total(exact), rel=1e-2)
    assert_weights(world, f"{name}-bf16", larger, atol=1e-2, key_bias=False)


@pytest.mark.parametrize("name", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_in_bf16_what_learns_nothing_is_exported_as_it_was(world, name):
    """DeepSpeed makes its float32 weights of those that it rounded."""
    still = ["steps=1", "optimizer.lr=1e-9", "optimizer.warmup_steps=0"]
    trained(world, f"{name}-still", f"{name}.yaml", TWO[:2], *still)
    exported = load_file(world / f"runs/{name}-still/model/open_clip_model.safetensors")
    original = load_file(REPOSITORY / "plugins/fictitious/clip/open_clip_model.safetensors")
    for key, tensor in exported.items():
        assert (tensor - original[key]).abs().max() < 1e-7, key


@pytest.mark.slow
def test_offloaded_weights_and_moments_give_the_same(world):
    trained(world, "offloaded", "zero3_offload.yaml", TWO)
    assert_same(world, "offloaded")
