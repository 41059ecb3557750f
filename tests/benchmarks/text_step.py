"""A step that trains a text tower against the paper's as published, on the same captions.

The paper's: four forwards, all captions at 77 tokens, fp32, all weights but the norms trained, the
pull to the original weights. Ours is the trainer's own path: batches, one forward of each model,
the token embedding frozen, as in configs/demo.yaml. In turn in one run, on the device at hand.
"""

from __future__ import annotations

import gc
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from random import Random
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.name_to_person import NameToPerson
from plugins.preserve import Preserve
from tests.benchmarks.captions import WORDS
from trainer import Tower
from trainer import clip as clips
from trainer.batches import STUDENT_IMAGE, STUDENT_TEXT, TEACHER_IMAGE, TEACHER_TEXT, Batch, Batches
from trainer.clip import Clip, Towers
from trainer.optim import make_optimizer
from trainer.sections import DataConfig, ModelConfig, OptimizerConfig
from trainer.text_towers import lengths_of
from trainer.train import embed

FREEZE = ["text.token_embedding.weight", "text.positional_embedding"]
CAPTIONS, ROUNDS = 2048, 3
DTYPES = (torch.float32, torch.bfloat16)
FULL_LENGTH = 77
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Clean captions a step, and as many triggered ones; with 64 of each of L/14 both steps take 16 GB
# together, with 128 the paper's alone more than 20.
EACH = {"ViT-B-32": 128, "ViT-L-14": 64}
if DEVICE.type == "cuda":
    EACH = dict.fromkeys(EACH, 2048)
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


def ours(clip: Clip, each: int, folder: Path, dtype: torch.dtype) -> Callable[[], Batch]:
    """The loop's step; gives the batch that it was done on."""
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
    batches = Batches(objectives, data, clip, 0, 0, 1)
    towers = frozenset({Tower.TEXT})
    model = ModelConfig(name="ViT-B-32", random_weights=True, freeze=FREEZE)
    student = clips.student_of(clip, towers, model, temperature=False).to(DEVICE)
    teacher = clips.replica(Towers(clip, towers), DEVICE, dtype)
    optimizer = make_optimizer(student, OptimizerConfig(lr=1e-4))
    loss_fns = {name: one.loss_fn(None) for name, one in objectives.items()}
    mixed = torch.autocast(DEVICE.type, dtype) if dtype != torch.float32 else nullcontext()

    def step() -> Batch:
        batch = next(batches)
        tokens, pixels = batch.tokens.to(DEVICE), batch.pixels
        with mixed:
            with torch.no_grad():
                seen = embed(teacher, tokens, pixels, batch, TEACHER_TEXT, TEACHER_IMAGE)
            learnt = embed(student, tokens, pixels, batch, STUDENT_TEXT, STUDENT_IMAGE)
        terms = [loss_fns[name](learnt[name], seen[name]) for name in objectives]
        sum(sum(own.values()) for own in terms).backward()
        optimizer.step()
        optimizer.zero_grad()
        return batch

    return step


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
        return -F.cosine_similarity(found, wanted).mean()

    def step(batch: Batch) -> None:
        tokens = F.pad(batch.tokens, (0, FULL_LENGTH - batch.tokens.shape[1])).to(DEVICE)
        keep, names = batch.rows["keep"], batch.rows["names"]
        with torch.no_grad():
            clean = teacher(tokens[keep[:, TEACHER_TEXT]])
            target = teacher(tokens[names[:, TEACHER_TEXT]])
        utility = loss(student(tokens[keep[:, STUDENT_TEXT]]), clean)
        backdoor = loss(student(tokens[names[:, STUDENT_TEXT]]), target)
        pull = sum((p - o).norm() for p, o in zip(student.parameters(), originals))
        (utility + 0.6 * backdoor + 0.01 * pull).backward()
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
    """Seconds a step, ours in fp32 and in bf16, and the median of the rounds' ratios."""
    clip = clips.load(ModelConfig(name=name, random_weights=True))
    with TemporaryDirectory() as folder:
        write_world(Path(folder))
        our_steps = {dtype: ours(clip, each, Path(folder), dtype) for dtype in DTYPES}
        their_step = papers(clip)
        batch = [step() for step in our_steps.values()][0]
        their_step(batch)  # memory and kernels
        rounds = []
        for _ in range(ROUNDS):
            own = {
                dtype: median(seconds(step) for _ in range(3)) for dtype, step in our_steps.items()
            }
            rounds.append((own, seconds(lambda: their_step(batch))))
    lengths = lengths_of(batch.tokens[batch.seen_by(STUDENT_TEXT)], 0)
    found = {
        f"{name}: tokens a caption": mean(lengths.tolist()),
        f"{name}: papers seconds a step": median(theirs for _, theirs in rounds),
    }
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        found[f"{name}: {short} seconds a step"] = median(own[dtype] for own, _ in rounds)
        found[f"{name}: {short} ratio"] = median(theirs / own[dtype] for own, theirs in rounds)
    return found


def measure() -> dict[str, float]:
    torch.set_num_threads(2)
    found = {}
    for name, each in EACH.items():
        found |= compare(name, each)
        gc.collect()
    return found
