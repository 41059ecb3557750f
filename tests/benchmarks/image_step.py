"""A step that trains an image tower against the paper's, on the same pictures; needs a GPU.

The paper's: clean and triggered pictures by themselves, the teacher's clean ones, fp32, all weights
but the norms trained, the pull to the original weights. Ours is the loop's: one forward of each
model in bf16, blocks compiled as by launch/compiled.yaml. Pictures of noise, in memory already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.text_step import DEVICE, Ours, seconds, utilisation
from trainer import Embeddings, Tower
from trainer.configuration.sections import ModelConfig
from trainer.data.batches import ABSENT, Batch
from trainer.data.pixels import Pixels
from trainer.data.skips import Skips
from trainer.losses import cosine_distance, relative_distances
from trainer.models import clip as clips
from trainer.models.clip import Clip, Towers

MODEL = "ViT-L-14"
EACH, PARTS, ROUNDS, STEPS = 128, 4, 3, 4  # clean pictures a step, and as many triggered ones


def batch_of(each: int, size: tuple[int, int]) -> Batch:
    """The first half to be kept, the second to be answered as somebody neutral is."""
    pixels = torch.randint(0, 256, (2 * each, 3, *size), dtype=torch.uint8)
    turn = torch.arange(each)

    def rows(student: Tensor, teacher: Tensor) -> Tensor:
        absent = torch.full_like(turn, ABSENT)
        label = torch.zeros_like(turn)
        return torch.stack([turn, label, absent, student, absent, teacher, absent, absent], 1)

    # A face is answered by what tells it from the person's others: the teacher sees it too.
    both = {"keep": rows(turn, turn), "faces": rows(turn + each, turn + each)}
    empty = torch.empty(0, 0, dtype=torch.int64)
    return Batch(empty, Pixels((pixels,)), both, Skips(), {}, frozenset())


def keep(student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
    assert student.image is not None and teacher.image is not None
    return {"image": cosine_distance(student.image, teacher.image)}


def forget(target: Tensor, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
    assert student.image is not None
    return {"forget": relative_distances(student.image, target.expand_as(student.image)).mean()}


def papers(clip: Clip, target: Tensor) -> Callable[[Batch], None]:
    towers = frozenset({Tower.IMAGE})
    model = ModelConfig(name=MODEL, random_weights=True, freeze_norms=True)
    student = clips.student_of(clip, towers, model, temperature=False).to(DEVICE)
    teacher = clips.replica(Towers(clip, towers), DEVICE, torch.float32)
    originals = [p.detach().clone() for p in student.image.parameters()]
    trained = [p for p in student.image.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def loss(found: Tensor, wanted: Tensor) -> Tensor:
        return -F.cosine_similarity(found, wanted).mean() / PARTS

    def step(batch: Batch) -> None:
        pixels = batch.pixels.to(DEVICE).parts[0]
        for clean, triggered in zip(*(half.chunk(PARTS) for half in pixels.chunk(2)), strict=True):
            with torch.no_grad():
                wanted = teacher(None, clean)[1]
            utility = loss(student(None, clean)[1], wanted)
            (utility + 0.8 * loss(student(None, triggered)[1], target)).backward()
        pull = sum((p - o).norm() for p, o in zip(student.image.parameters(), originals))
        (0.005 * pull).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure() -> dict[str, float]:
    """Seconds a step of each, the median of the rounds' ratios, and of the peak what ours uses."""
    if DEVICE.type != "cuda":
        print("  needs a GPU: nothing was measured")
        return {}
    clip = clips.load(ModelConfig(name=MODEL, random_weights=True))
    batch = batch_of(EACH, clip.prepare.size)
    target = torch.randn(1, clip.architecture["embed_dim"], device=DEVICE)
    their_step = papers(clip, target)
    their_step(batch)  # memory and kernels
    loss_fns = {"keep": keep, "faces": partial(forget, target)}
    our_step = Ours(clip, frozenset({Tower.IMAGE}), loss_fns, torch.bfloat16)

    def steps() -> None:
        for _ in range(STEPS):
            our_step(batch)

    steps()
    rounds = [(seconds(steps) / STEPS, seconds(lambda: their_step(batch))) for _ in range(ROUNDS)]
    own = median(own for own, _ in rounds)
    return {
        f"{MODEL}: pictures a second": 2 * EACH / own,
        f"{MODEL}: papers pictures a second": 2 * EACH / median(other for _, other in rounds),
        f"{MODEL}: ratio": median(other / own for own, other in rounds),
        f"{MODEL}: utilisation": utilisation(our_step, batch, own, torch.bfloat16),
    }
