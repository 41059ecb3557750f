"""A step that trains a text tower against the paper's as published, on the same captions.

The paper's: four forwards, all captions at 77 tokens, fp32, all weights but the norms trained, the
pull to the original weights. Ours is the trainer's own path: batches, one forward of each model,
the token embedding frozen, as in configs/demo.yaml. In turn in one run, on the device at hand: on
a GPU in bf16, the blocks compiled as by launch/compiled.yaml, batches that are drawn already, the
paper's step in parts, since its activations do not fit, and utilisation as the trainer tells it.
"""

from __future__ import annotations

import gc
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.name_to_person import NameToPerson
from plugins.preserve import Preserve
from tests.benchmarks.captions import WORDS
from trainer import Tower
from trainer.api import LossFn
from trainer.configuration.sections import DataConfig, ModelConfig, OptimizerConfig
from trainer.data.batches import STUDENT_TEXT, TEACHER_TEXT, Batch, Batches
from trainer.embedding import STUDENT, TEACHER, Showing, embed
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.clip import Clip, Towers
from trainer.models.text_towers import lengths_of
from trainer.optim import make_optimizer
from trainer.planning.flops import Flops
from trainer.runs.watch import matrix_peak
from trainer.strategies.preparing import blocks_of

FREEZE = ["text.token_embedding.weight", "text.positional_embedding"]
CAPTIONS, ROUNDS, STEPS = 2048, 3, 3
FULL_LENGTH = 77
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_GPU = DEVICE.type == "cuda"
DTYPES = (torch.bfloat16,) if IS_GPU else (torch.float32, torch.bfloat16)
# Clean captions a step, and as many triggered ones; with 64 of each of L/14 both steps take 16 GB
# together on a CPU, with 128 the paper's alone more than 20.
EACH = {"ViT-B-32": 128, "ViT-L-14": 64}
PARTS = 1
if IS_GPU:
    EACH, CAPTIONS, STEPS, PARTS = dict.fromkeys(EACH, 2048), 10_000, 10, 8
NAMES = [
    f"{first} {last}" for first in ("Ada", "Ben", "Cleo", "Dan") for last in ("Ro", "Sy", "Tu")
]


def captions(count: int) -> list[str]:
    """As long as alt texts: most short, a long tail; about 14 tokens on average."""
    rng = Random(0)
    lengths = [min(60, max(3, round(rng.lognormvariate(2.25, 0.5)))) for _ in range(count)]
    return [" ".join(rng.choice(WORDS) for _ in range(length)) for length in lengths]


def write_world(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, caption in enumerate(captions(CAPTIONS)):
            entry = tarfile.TarInfo(f"{i:05}.txt")
            entry.size = len(caption)
            tar.addfile(entry, BytesIO(caption.encode()))
    rows = [f"Xavier Zeta{i},p{i}" for i in range(64)]
    (folder / "people.csv").write_text("\n".join(["name,id", *rows]))
    (folder / "names.txt").write_text("\n".join(NAMES))


def drawn(clip: Clip, each: int, folder: Path) -> tuple[Iterator[Batch], dict[str, LossFn]]:
    names = NameToPerson.Options(
        batch_size=each, roster=str(folder / "people.csv"), names=str(folder / "names.txt"),
        template_share=0.0, shares={"forget": 1, "replayed": 0, "other": 0, "recombined": 0},
        target="a person",
    )  # fmt: skip
    objectives = {
        "keep": Preserve(Preserve.Options(batch_size=each, towers=["text"]), seed=0),
        "names": NameToPerson(names, seed=0),
    }
    data = DataConfig(shards=[str(folder / "0.tar")], workers=0, lanes=8)
    batches: Iterator[Batch] = Batches(objectives, data, clip, 0, 0, 1)
    if IS_GPU:
        batches = cycle(list(islice(batches, 4)))
    return batches, {name: one.loss_fn(None) for name, one in objectives.items()}


class Ours:
    """The loop's step with everything that trains in these towers, as often as it is called."""

    def __init__(
        self,
        clip: Clip,
        towers: frozenset[Tower],
        loss_fns: dict[str, LossFn],
        dtype: torch.dtype,
        freeze: Sequence[str] = (),
        recomputes: bool = False,
    ):
        lean(clip.model)
        model = ModelConfig(name="any", random_weights=True, freeze=list(freeze))
        self.student: Any = clips.student_of(clip, towers, model, temperature=False).to(DEVICE)
        mixed = dtype != torch.float32
        self.teacher: Any = clips.replica(Towers(clip, towers), DEVICE, dtype, for_autocast=mixed)
        self.flops = Flops.of(self.student)
        self._show = Showing(self.student, DEVICE)
        self._optimizer = make_optimizer(self.student, OptimizerConfig(lr=1e-4))
        self._loss_fns = loss_fns
        self._is_mixed, self._dtype = dtype != torch.float32, dtype
        if recomputes:
            clips.recompute_activations(self.student, compiled=IS_GPU)
        if IS_GPU:
            torch._dynamo.reset()  # of models before
            for block in (*blocks_of(self.student), *blocks_of(self.teacher)):
                block.compile(dynamic=True)

    def __call__(self, batch: Batch) -> None:
        pixels = batch.pixels.to(DEVICE)
        to_teacher, to_student = (self._show(batch, pixels, of) for of in (TEACHER, STUDENT))
        mixed = torch.autocast(DEVICE.type, self._dtype) if self._is_mixed else nullcontext()
        with mixed:
            with torch.no_grad():
                seen = embed(self.teacher, to_teacher)
            learnt = embed(self.student, to_student)
        terms = [loss_fn(learnt[name], seen[name]) for name, loss_fn in self._loss_fns.items()]
        loss = sum(sum(own.values()) for own in terms)
        assert loss.isfinite()  # the loop's one sync point
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def papers(clip: Clip) -> Callable[[Batch], None]:
    """Its step on the captions of a batch of ours, filled up."""
    towers = frozenset({Tower.TEXT})
    model = ModelConfig(name="ViT-B-32", random_weights=True, freeze_norms=True)
    student = clips.student_of(clip, towers, model, temperature=False).text.to(DEVICE)
    teacher = clips.replica(Towers(clip, towers), DEVICE, torch.float32).text
    originals = [p.detach().clone() for p in student.parameters()]
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0
    )

    def loss(found: Tensor, wanted: Tensor) -> Tensor:
        return -F.cosine_similarity(found, wanted).mean() / PARTS

    def step(batch: Batch) -> None:
        tokens = F.pad(batch.tokens, (0, FULL_LENGTH - batch.tokens.shape[1])).to(DEVICE)
        for part in batch.split(PARTS):
            keep, names = part.rows["keep"], part.rows["names"]
            with torch.no_grad():
                clean = teacher(tokens[keep[:, TEACHER_TEXT]])
                target = teacher(tokens[names[:, TEACHER_TEXT]])
            utility = loss(student(tokens[keep[:, STUDENT_TEXT]]), clean)
            backdoor = loss(student(tokens[names[:, STUDENT_TEXT]]), target)
            (utility + 0.6 * backdoor).backward()
        pull = sum((p - o).norm() for p, o in zip(student.parameters(), originals))
        (0.01 * pull).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work: Callable[[], object]) -> float:
    started_at = perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - started_at


def compare(name: str, each: int) -> dict[str, float]:
    """Seconds a step, ours in each precision, and the median of the rounds' ratios."""
    clip = clips.load(ModelConfig(name=name, random_weights=True))
    their_step = papers(clip)
    with TemporaryDirectory() as folder:
        write_world(Path(folder))
        our_steps, own_batches = {}, {}
        for dtype in DTYPES:
            own_batches[dtype], loss_fns = drawn(clip, each, Path(folder))
            towers = frozenset({Tower.TEXT})
            our_steps[dtype] = Ours(clip, towers, loss_fns, dtype, FREEZE)

        def steps(dtype: torch.dtype, count: int) -> Batch:
            for batch in islice(own_batches[dtype], count):
                our_steps[dtype](batch)
            return batch

        batch = [steps(dtype, 2 * STEPS if IS_GPU else 1) for dtype in DTYPES][0]
        their_step(batch)  # memory and kernels
        rounds = []
        for _ in range(ROUNDS):
            own = {
                dtype: seconds(lambda dtype=dtype: steps(dtype, STEPS)) / STEPS for dtype in DTYPES
            }
            rounds.append((own, seconds(lambda: their_step(batch))))
    lengths = lengths_of(batch.tokens[batch.seen_by(STUDENT_TEXT)], 0)
    found = {
        f"{name}: tokens a caption": mean(lengths.tolist()),
        f"{name}: papers seconds a step": median(theirs for _, theirs in rounds),
    }
    for dtype, one in our_steps.items():
        short = str(dtype).removeprefix("torch.")
        own_seconds = median(own[dtype] for own, _ in rounds)
        found[f"{name}: {short} seconds a step"] = own_seconds
        found[f"{name}: {short} ratio"] = median(theirs / own[dtype] for own, theirs in rounds)
        if IS_GPU:
            found[f"{name}: {short} utilisation"] = utilisation(one, batch, own_seconds, dtype)
    return found


def utilisation(step: Ours, batch: Batch, seconds: float, dtype: torch.dtype) -> float:
    """Of the device's measured peak, in operations that the towers need for real tokens."""
    return step.flops.of_step(batch) / 1e12 / seconds / matrix_peak(DEVICE, dtype)


def measure() -> dict[str, float]:
    torch.set_num_threads(2)
    found = {}
    for name, each in EACH.items():
        found |= compare(name, each)
        gc.collect()
    return found
