"""How fast a run goes, what it waits for, how much memory it takes; and a trace of some steps."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.data.batches import STUDENT_TEXT, Batch
from trainer.models.text_towers import lengths_of
from trainer.planning.flops import Flops
from trainer.strategies.spread import whole

T = TypeVar("T")
GPU_SIDE, CPU_SIDE, REPEATS = 8192, 1024, 5  # of the product that the peak is measured by


class Watch:
    """Sums over a window of steps, put together over all ranks when it is read.

    Until then nothing is asked of the device, but before what `aside` leaves out. What came from
    the loader is looked at on the CPU.
    """

    def __init__(self, flops: Flops, accelerator: Accelerator, dtype: torch.dtype):
        self._flops, self._accelerator = flops, accelerator
        self._peak = matrix_peak(accelerator.device, dtype)
        self._start()

    def _start(self) -> None:
        self._pairs = self._tokens = 0
        self._flop = 0.0
        self._waited = self._aside = 0.0  # seconds
        self._norms: list[Tensor] = []
        self._started_at = time.perf_counter()

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, and how long each was waited for."""
        self._start()
        stream = iter(batches)
        while True:
            asked_at = time.perf_counter()
            batch = next(stream, None)
            self._waited += time.perf_counter() - asked_at
            if batch is None:
                return
            self._saw(batch)
            yield batch

    def _saw(self, batch: Batch) -> None:
        captions = batch.tokens[batch.seen_by(STUDENT_TEXT)]
        self._pairs += sum(map(len, batch.rows.values()))
        self._tokens += int(lengths_of(captions, self._flops.pad_id).sum())
        self._flop += self._flops.of_step(batch)

    def gradient(self, norm: Tensor | float | None) -> None:
        """Of one step, before it is clipped. None: the engine does not tell."""
        if norm is not None:
            self._norms.append(whole(torch.as_tensor(norm).detach()))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is no training: measuring, saving. A sync point with the device before it."""
        if self._accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        started_at = time.perf_counter()
        yield
        self._aside += time.perf_counter() - started_at

    def read(self) -> dict[str, float]:
        """Since it was last read; the same on every rank. A sync point and a collective.

        Samples (pairs) and tokens a second of all ranks together; tokens are those that the
        student reads, without padding. utilisation: of the operations a second that this device
        reaches in a product of large matrices, those that the towers need. waiting: the share of
        the time in which the loop waits for its batch; a GPU may be busy meanwhile.
        peak_memory_gb: the largest of any rank. gradient_norm: the mean, before clipping.
        """
        device = self._accelerator.device
        norms = [norm.to(device, torch.float32) for norm in self._norms]
        norm = float(torch.stack(norms).mean()) if norms else 0.0  # the sync point
        seconds = time.perf_counter() - self._started_at - self._aside
        own = [self._pairs, self._tokens, self._flop / 1e12, self._waited, seconds]
        own += [self._peak, peak_memory(device) / 1e9, norm]
        # (ranks, 8): float32, since some devices know no float64.
        ranks = self._accelerator.gather(torch.tensor([own], device=device)).tolist()
        pairs, tokens, tera, waited, elapsed, peaks, memory, norms_seen = zip(*ranks, strict=True)
        longest = max(elapsed)
        found = {
            "samples_per_second": sum(pairs) / longest,
            "tokens_per_second": sum(tokens) / longest,
            "utilisation": sum(tera) / longest / sum(peaks),
            "waiting": sum(waited) / sum(elapsed),
            "peak_memory_gb": max(memory),
        }
        if self._norms:
            found["gradient_norm"] = sum(norms_seen) / len(ranks)
        self._start()
        return found


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a product of square matrices, the best of some; half a second at most."""
    side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    # At random: of ones a GPU's product takes less power, and is a tenth faster.
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(REPEATS):
        started_at = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # the sync point
        seconds.append(time.perf_counter() - started_at)
    return 2 * side**3 / min(seconds) / 1e12


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a GPU; of a CPU all that this process ever held (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def traced(
    steps: Iterable[T], first: int, wanted: tuple[int, int] | None, folder: Path, rank: int
) -> Iterator[T]:
    """The steps as they are, and of those from `wanted[0]` to `wanted[1]` a trace in the folder.

    first: the number of the first that is to come. For chrome://tracing or ui.perfetto.dev.
    """
    if wanted is None or wanted[1] < first:
        yield from steps
        return
    begin, end = max(wanted[0], first), wanted[1]
    warm_up = min(1, begin - first)  # the profiler's own first step is slow

    def write(profiler: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"steps-{begin}-{end}-rank-{rank}.json.gz"))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    when = schedule(wait=begin - first - warm_up, warmup=warm_up, active=end - begin + 1, repeat=1)
    with profile(activities=activities, schedule=when, on_trace_ready=write) as profiler:
        for step in steps:
            yield step
            profiler.step()
