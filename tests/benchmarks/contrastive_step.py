"""A step of `contrastive` against open_clip's own training loop: same model, batch and precision.

Theirs (`open_clip_train.train.train_one_epoch`) gets its batches ready from memory, ours reads,
decodes and tokenises them from shards as it trains. In turn in one run, on the device at hand.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip_train.train import train_one_epoch

from plugins.contrastive import Contrastive
from tests.benchmarks.pictures import SIZE, draw_picture, jpeg
from tests.benchmarks.text_step import DEVICE, FULL_LENGTH, captions, seconds
from trainer import Tower
from trainer.configuration.sections import DataConfig, ModelConfig, OptimizerConfig
from trainer.data.batches import STUDENT_IMAGE, STUDENT_TEXT, Batch, Batches
from trainer.embedding import STUDENT, Showing, embed
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.clip import Clip
from trainer.optim import make_optimizer
from trainer.strategies.preparing import blocks_of

MODEL = "ViT-B-32"
PICTURES, ROUNDS = 256, 3
IS_MIXED = DEVICE.type == "cuda"  # bf16 there, fp32 on a CPU
BATCH, STEPS, WORKERS = (1024, 8, 14) if IS_MIXED else (64, 1, 0)
OPTIMIZER = OptimizerConfig(lr=1e-5, weight_decay=0.2)


def write_shard(path: Path) -> None:
    pictures = [jpeg(draw_picture(seed, *SIZE)) for seed in range(16)]
    with tarfile.open(path, "w") as tar:
        for i, caption in enumerate(captions(PICTURES)):
            for name, data in (("jpg", pictures[i % 16]), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{i:05}.{name}")
                entry.size = len(data)
                tar.addfile(entry, BytesIO(data))


def ours(clip: Clip, shard: Path) -> tuple[Batches, Callable[[], None]]:
    objective = Contrastive(Contrastive.Options(batch_size=BATCH), seed=0)
    data = DataConfig(shards=[str(shard)], workers=WORKERS, lanes=64)
    batches = Batches({"x": objective}, data, clip, 0, 0, 1)
    model = ModelConfig(name=MODEL, random_weights=True)
    lean(clip.model)
    student: Any = clips.student_of(clip, frozenset(Tower), model, temperature=True).to(DEVICE)
    show = Showing(student, DEVICE)
    if IS_MIXED:
        for block in blocks_of(student):
            block.compile(dynamic=True)
    optimizer = make_optimizer(student, OPTIMIZER)
    loss_fn = objective.loss_fn(None)
    mixed = torch.autocast(DEVICE.type, torch.bfloat16) if IS_MIXED else nullcontext()

    def steps() -> None:
        for batch in islice(batches, STEPS):
            shown = show(batch, batch.pixels.to(DEVICE), STUDENT)
            with mixed:
                learnt = embed(student, shown)["x"]
            sum(loss_fn(learnt, learnt).values()).backward()
            optimizer.step()
            optimizer.zero_grad()

    return batches, steps


class Ready:
    """What open_clip's loop wants of its data: batches in memory, as its own loader gives them."""

    def __init__(self, batches: list[Batch], clip: Clip):
        self.dataloader = self
        self.num_batches, self.num_samples = STEPS, STEPS * BATCH
        self._batches = [self._as_theirs(batch, clip) for batch in batches]

    @staticmethod
    def _as_theirs(batch: Batch, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        rows = batch.rows["x"]
        places = rows[:, STUDENT_IMAGE].sort()
        pictures = clip.prepare.scale(batch.pixels[places.values])
        tokens = F.pad(batch.tokens, (0, FULL_LENGTH - batch.tokens.shape[1]))
        return pictures, tokens[rows[places.indices, STUDENT_TEXT]]

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self):
        return iter(self._batches)


def theirs(ready: Ready) -> Callable[[], None]:
    model = open_clip.create_model(MODEL, output_dict=True).to(DEVICE)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.0}, {"params": matrices}],
        lr=OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay,
    )  # fmt: skip
    args = SimpleNamespace(
        device=str(DEVICE), precision="amp_bf16" if IS_MIXED else "fp32",
        distill=False, accum_freq=1, skip_scheduler=True, horovod=False, grad_clip_norm=None,
        rank=0, local_rank=0, world_size=1, log_local=False, log_every_n_steps=STEPS,
        batch_size=BATCH, wandb=False,
    )  # fmt: skip
    loss = open_clip.ClipLoss()

    def steps() -> None:
        train_one_epoch(model, {"train": ready}, loss, 0, optimizer, None, None, None, args)

    return steps


def measure() -> dict[str, float]:
    """Samples a second of each, and the median of the rounds' ratios."""
    torch.set_num_threads(2)
    clip = clips.load(ModelConfig(name=MODEL, random_weights=True))
    with TemporaryDirectory() as folder:
        write_shard(Path(folder) / "0.tar")
        batches, our_steps = ours(clip, Path(folder) / "0.tar")
        their_steps = theirs(Ready(list(islice(batches, STEPS)), clip))
        our_steps(), their_steps()  # memory and kernels
        rounds = [(seconds(our_steps), seconds(their_steps)) for _ in range(ROUNDS)]
        batches.close()
    return {
        "samples_per_second": BATCH * STEPS / median(own for own, _ in rounds),
        "open_clip_samples_per_second": BATCH * STEPS / median(other for _, other in rounds),
        "ratio": median(other / own for own, other in rounds),
    }
