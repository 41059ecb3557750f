"""The loop: one forward of each model a step, each objective its rows, backward, step."""

from __future__ import annotations

import math
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
    Batches,
    Pixels,
)
from trainer.clip import Towers
from trainer.config import Config
from trainer.encoder import ClipEncoder
from trainer.evaluate import due, measure
from trainer.export import export
from trainer.interruption import Interruption
from trainer.optim import learning_rate, make_optimizer, pull
from trainer.runs import Run, start
from trainer.skips import Skips
from trainer.steps import check_sizes


def train(config: Config) -> None:
    """Teach the objectives; measure before, during and after. All goes to the run's folder."""
    accelerator = start(config)
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    objectives = config.objectives
    check_sizes(objectives, config.data.lanes, ranks)
    set_seed(config.seed)
    run = Run(config, accelerator)

    with run.timed("load"):
        clip = clips.load(config.model)
        student = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
        student = student.to(device)
        teacher = clips.frozen(Towers(clip, config.trained)).to(device)
        # Only evaluations need what nobody trains: it stays on the CPU until one asks.
        rest = clips.frozen(Towers(clip, frozenset(Tower) - config.trained))
        anchor = pull(student, config.optimizer.anchor)
        # The student and its optimizer, nothing else: a teacher that is prepared would train.
        student, optimizer = accelerator.prepare(student, make_optimizer(student, config.optimizer))

        def encoder(towers: Towers) -> ClipEncoder:
            return ClipEncoder(
                towers if towers.text else rest, towers if towers.image else rest, clip, device
            )

        original, learner = encoder(teacher), encoder(accelerator.unwrap_model(student))
        loss_fns = {name: one.loss_fn(original) for name, one in objectives.items()}

    saved, saves = run.saved, run.checkpoints()
    if saved:
        saved.load_into(accelerator.unwrap_model(student), optimizer, rank)
        before = saved.before
    else:
        with run.timed("before"):
            before = measure(config.evaluations, original, original)
            run.log(0, before)

    stream = saved.stream if saved else None
    batches = Batches(objectives, config.data, clip, config.seed, rank, ranks, stream)
    first = saved.step if saved else 0
    window = saved.window(rank, device) if saved else []  # losses since they were last logged
    skips = saved.skips if saved and accelerator.is_main_process else Skips()
    with run.timed("train"), Interruption(accelerator) as interruption:
        rest_of = islice(batches, config.steps - first)
        for step, batch in enumerate(run.progress(rest_of, first, config.steps), first + 1):
            tokens, pixels = batch.tokens.to(device), batch.pixels.to(device)
            with accelerator.autocast():
                with torch.no_grad():
                    taught = embed(teacher, tokens, pixels, batch, TEACHER_TEXT, TEACHER_IMAGE)
                learnt = embed(student, tokens, pixels, batch, STUDENT_TEXT, STUDENT_IMAGE)
            losses: dict[str, Tensor] = {}
            loss = torch.zeros((), device=device)
            for name, loss_fn in loss_fns.items():
                terms = loss_fn(learnt[name], taught[name])
                losses |= {f"{name}/{term}": value.detach() for term, value in terms.items()}
                loss = loss + objectives[name].options.weight * sum(terms.values())
            if config.optimizer.anchor:
                loss = loss + (distance := anchor())
                losses["optimizer/anchor"] = distance.detach()

            accelerator.backward(loss)
            if config.optimizer.clip:
                accelerator.clip_grad_norm_(student.parameters(), config.optimizer.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config.steps, config.optimizer)
            optimizer.step()
            optimizer.zero_grad()

            window.append(losses)
            skips += batch.skips
            skips.judge(config.data.max_bad_share)
            if step % config.log_every == 0 or step == config.steps:
                means = mean_of(window, accelerator, step)
                bad_samples = total(skips.bad.total(), accelerator)
                run.log(step, means | {"bad_samples": bad_samples}, show=True)
                window.clear()
            if step < config.steps and (evaluations := due(config.evaluations, step)):
                run.log(step, measure(evaluations, learner, original))
            is_interrupted = step < config.steps and interruption.is_asked()
            if saves and step < config.steps and (saves.due(step) or is_interrupted):
                model = accelerator.unwrap_model(student)
                order, positions = batches.order, batch.positions
                saves.save(step, model, optimizer, order, positions, before, skips, window)
            if is_interrupted:
                run.leave(step, saves)
    if saves:
        saves.wait()
    with run.timed("after"):
        after = measure(config.evaluations, learner, original)
        run.log(config.steps, after)
    if accelerator.is_main_process:
        with run.timed("export"):
            dtype = getattr(torch, config.export.dtype)
            export(clip, accelerator.unwrap_model(student), run.folder / "model", dtype)
    run.finish(before, after, skips, config.steps)
    accelerator.end_training()


def embed(
    model: nn.Module,
    tokens: Tensor,
    pixels: Pixels,
    batch: Batch,
    text_column: int,
    image_column: int,
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
        if embedded is None or not present.any():
            return None, None
        index = torch.searchsorted(places, rows[present, column].contiguous())
        return embedded[index], rows[present, LABEL].to(embedded.device)

    embeddings = {}
    for name, rows in batch.rows.items():
        own_text, text_labels = own(text, text_places, rows, text_column)
        own_image, image_labels = own(image, image_places, rows, image_column)
        embeddings[name] = Embeddings(own_text, own_image, text_labels, image_labels, scale)
    return embeddings


def mean_of(
    window: list[dict[str, Tensor]], accelerator: Accelerator, step: int
) -> dict[str, float]:
    """The mean of each loss since it was last logged, over all ranks. Raises FloatingPointError."""
    names = list(window[0])
    stacked = torch.stack([torch.stack([losses[name] for name in names]) for losses in window])
    # A GPU-CPU sync point and a collective: only when logging.
    means = accelerator.reduce(stacked.mean(0), "mean").tolist()
    for name, value in zip(names, means, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss {name} is {value} at step {step}; nothing was exported. "
                "Lower optimizer.lr or its objective's weight"
            )
    return dict(zip(names, means, strict=True))


def total(count: int, accelerator: Accelerator) -> int:
    """Over all ranks; a collective."""
    counts = accelerator.reduce(torch.tensor(count, device=accelerator.device), "sum")
    return int(counts)
