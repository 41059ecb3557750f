"""The loop: one forward of each model a step, each objective its rows, backward, step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from trainer import clip as clips
from trainer.api import Embeddings, Tower
from trainer.batches import (
    ABSENT,
    LABEL,
    STUDENT_IMAGE,
    STUDENT_TEXT,
    TEACHER_IMAGE,
    TEACHER_TEXT,
    Batch,
    stream_batches,
)
from trainer.clip import ClipEncoder, Towers
from trainer.config import Config
from trainer.evaluate import due, measure
from trainer.export import export
from trainer.optim import learning_rate, make_optimizer, pull
from trainer.runs import Run


def train(config: Config) -> None:
    """Teach the objectives, measuring before, during and after; everything goes to the run folder."""
    accelerator = Accelerator(log_with=list(config.trackers) or None, project_dir=config.output)
    set_seed(config.seed)
    objectives, device = config.objectives, accelerator.device
    run = Run(config, accelerator)

    with run.timed("load"):
        clip = clips.load(config.model)
        trained = frozenset[Tower]().union(*(one.towers for one in objectives.values()))
        temperature = any(one.trains_temperature for one in objectives.values())
        student = clips.student_of(clip, trained, config.model, temperature).to(device)
        teacher = clips.frozen(Towers(clip, frozenset(Tower))).to(device)
        anchor = pull(student, config.optimizer.anchor)
        # The student and its optimizer, nothing else: a teacher that is prepared would train.
        student, optimizer = accelerator.prepare(
            student, make_optimizer(student, config.optimizer)
        )
        original = ClipEncoder(teacher, teacher, clip, device)
        loss_fns = {name: one.loss_fn(original) for name, one in objectives.items()}

    def trained_encoder() -> ClipEncoder:
        towers = accelerator.unwrap_model(student)
        return ClipEncoder(towers if towers.text else teacher, towers if towers.image else teacher, clip, device)

    with run.timed("before"):
        before = measure(config.evaluations, original, original)
        run.log(0, before)

    batches = stream_batches(
        objectives, config.data, clip, config.seed, accelerator.process_index, accelerator.num_processes
    )
    window: list[dict[str, Tensor]] = []  # losses since they were last logged, on the device
    skipped: Counter[str] = Counter()
    with run.timed("train"):
        for step, batch in enumerate(run.progress(islice(batches, config.steps), config.steps), 1):
            tokens, pixels = batch.tokens.to(device), batch.pixels.to(device)
            with accelerator.autocast():
                with torch.no_grad():
                    taught = embed(teacher, tokens, pixels, batch, TEACHER_TEXT, TEACHER_IMAGE)
                learnt = embed(student, tokens, pixels, batch, STUDENT_TEXT, STUDENT_IMAGE)
            terms = {
                name: loss_fn(learnt[name], taught[name]) for name, loss_fn in loss_fns.items()
            }
            loss = sum(objectives[name].options.weight * sum(t.values()) for name, t in terms.items())
            if config.optimizer.anchor:
                terms["optimizer"] = {"anchor": anchor()}
                loss = loss + terms["optimizer"]["anchor"]

            accelerator.backward(loss)
            if config.optimizer.clip:
                accelerator.clip_grad_norm_(student.parameters(), config.optimizer.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config.steps, config.optimizer)
            optimizer.step()
            optimizer.zero_grad()

            skipped += batch.skipped
            window.append({f"{name}/{term}": value.detach() for name, t in terms.items() for term, value in t.items()})
            if step % config.log_every == 0 or step == config.steps:
                run.log(step, mean_of(window, accelerator, step), show=True)
                window.clear()
            if step < config.steps and (evaluations := due(config.evaluations, step)):
                run.log(step, measure(evaluations, trained_encoder(), original))

    with run.timed("after"):
        after = measure(config.evaluations, trained_encoder(), original)
        run.log(config.steps, after)
    if accelerator.is_main_process:
        with run.timed("export"):
            dtype = getattr(torch, config.export.dtype)
            export(clip, accelerator.unwrap_model(student), run.folder / "model", dtype)
    run.finish(before, after, skipped, config.steps)
    accelerator.end_training()


def embed(
    model: nn.Module, tokens: Tensor, pixels: Tensor, batch: Batch, text_column: int, image_column: int
) -> dict[str, Embeddings]:
    """One forward over all that this model is to see, then each objective its own rows of it."""
    text_places, image_places = batch.seen_by(text_column), batch.seen_by(image_column)
    text = image = None
    scale = torch.ones((), device=tokens.device)
    if len(text_places) or len(image_places):
        text, image, scale = model(
            tokens[text_places] if len(text_places) else None,
            pixels[image_places] if len(image_places) else None,
        )

    def own(embedded: Tensor | None, places: Tensor, rows: Tensor, column: int):
        present = rows[:, column] != ABSENT
        if not present.any():
            return None, None
        index = torch.searchsorted(places, rows[present, column].contiguous())
        return embedded[index], rows[present, LABEL].to(embedded.device)

    embeddings = {}
    for name, rows in batch.rows.items():
        own_text, text_labels = own(text, text_places, rows, text_column)
        own_image, image_labels = own(image, image_places, rows, image_column)
        embeddings[name] = Embeddings(own_text, own_image, text_labels, image_labels, scale)
    return embeddings


def mean_of(window: list[dict[str, Tensor]], accelerator: Accelerator, step: int) -> dict[str, float]:
    """The mean of each loss since it was last logged, over all ranks. Raises FloatingPointError."""
    names = list(window[0])
    stacked = torch.stack([torch.stack([losses[name] for name in names]) for losses in window])
    # A GPU-CPU sync point and a collective: only when logging.
    means = accelerator.reduce(stacked.mean(0), "mean").tolist()
    for name, value in zip(names, means, strict=True):
        if value != value or abs(value) == float("inf"):
            raise FloatingPointError(f"the loss {name} is {value} at step {step}; nothing was exported")
    return dict(zip(names, means, strict=True))


def evaluate_checkpoint(config: Config, checkpoint: str) -> None:
    """Measure a checkpoint against the configuration's model; the same files, but no training."""
    accelerator = Accelerator(log_with=list(config.trackers) or None, project_dir=config.output)
    run = Run(config, accelerator)
    with run.timed("load"):
        clip = clips.load(config.model)
        found = clips.load(config.model.model_copy(update={"pretrained": checkpoint}))
        teacher, student = (
            clips.frozen(Towers(one, frozenset(Tower))).to(accelerator.device)
            for one in (clip, found)
        )
        original = ClipEncoder(teacher, teacher, clip, accelerator.device)
        other = ClipEncoder(student, student, found, accelerator.device)
    with run.timed("before"):
        before = measure(config.evaluations, original, original)
    with run.timed("after"):
        after = measure(config.evaluations, other, original)
    run.finish(before, after, Counter(), steps=0)
    accelerator.end_training()
