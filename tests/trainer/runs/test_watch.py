"""What a run tells of its speed, and the traces that it keeps."""

from __future__ import annotations

import gzip
import json
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.trainer.planning.test_flops import batch_of
from trainer.planning.flops import Flops, Work
from trainer.runs.watch import Watch, matrix_peak, peak_memory, traced

FLOPS = Flops(Work(np.array([1e9]), np.array([2e9])), None, pad_id=0)


@pytest.fixture
def watch() -> Watch:
    return Watch(FLOPS, Accelerator(cpu=True), torch.float32)


def read_of(watch: Watch, steps: int, *, loading: float = 0.0, computing: float = 0.0) -> dict:
    tokens = torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0]])

    def batches():
        for _ in range(steps):
            time.sleep(loading)
            yield batch_of(tokens, 0)

    for _ in watch.waiting(batches()):
        time.sleep(computing)
    return watch.read()


def test_pairs_tokens_and_operations_are_counted_by_the_second(watch):
    found = read_of(watch, 5, computing=0.02)
    pairs = found["samples_per_second"]
    assert 0 < pairs <= 2 / 0.02
    assert found["tokens_per_second"] == pytest.approx(2 * pairs)  # 3 and 1 of two pairs
    # The student's forward and backward and the teacher's forward: 4 GFLOP a caption.
    assert found["utilisation"] == pytest.approx(4e-3 * pairs / watch._peak, rel=1e-3)
    assert "gradient_norm" not in found


def test_waiting_is_the_share_of_the_time_that_the_loader_takes(watch):
    assert read_of(watch, 5, loading=0.05)["waiting"] > 0.9
    assert read_of(watch, 5, computing=0.05)["waiting"] < 0.2


def test_what_is_aside_is_no_time_of_training(watch):
    for _ in watch.waiting([batch_of(torch.ones(2, 4, dtype=torch.int64), 0)]):
        with watch.aside():
            time.sleep(0.5)
    assert watch.read()["samples_per_second"] > 2 / 0.5


def test_the_gradients_norm_is_the_windows_mean(watch):
    watch.gradient(torch.tensor(1.0))
    watch.gradient(3.0)
    watch.gradient(None)
    assert watch.read()["gradient_norm"] == pytest.approx(2.0)
    assert "gradient_norm" not in watch.read()


def test_the_peak_of_matrices_and_memory_are_of_this_machine():
    assert 1e-3 < matrix_peak(torch.device("cpu"), torch.float32) < 1e3  # TFLOP/s
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(50_000_000, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) >= max(before, held.nbytes)


def names_in(path) -> set[str]:
    return {event["name"] for event in json.loads(gzip.open(path).read())["traceEvents"]}


@pytest.mark.parametrize(("first", "wanted"), [(1, (2, 3)), (1, (1, 1)), (5, (2, 6))])
def test_a_trace_is_kept_of_the_steps_asked_for(tmp_path, first, wanted):
    seen = []
    for step in traced(range(first, 8), first, wanted, tmp_path / "trace", rank=0):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(10).sum()
        seen.append(step)
    assert seen == list(range(first, 8))
    begin = max(first, wanted[0])
    (path,) = (tmp_path / "trace").iterdir()
    assert path.name == f"steps-{begin}-{wanted[1]}-rank-0.json.gz"
    steps = {name for name in names_in(path) if name.startswith("step ")}
    assert steps == {f"step {step}" for step in range(begin, wanted[1] + 1)}


@pytest.mark.parametrize("wanted", [None, (1, 3)])
def test_no_trace_where_none_is_asked_for_or_its_steps_are_over(tmp_path, wanted):
    assert [*traced(range(4, 6), 4, wanted, tmp_path / "trace", rank=0)] == [4, 5]
    assert not (tmp_path / "trace").exists()
