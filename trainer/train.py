"""The loop: one forward of each model a step, each objective its rows, backward, step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import Tensor

from trainer.api import Evaluation
from trainer.configuration.config import Config
from trainer.data.batches import Batch, Batches
from trainer.data.embed_shards import known_embeddings
from trainer.data.skips import Skips
from trainer.data.steps import check_sizes
from trainer.embedding import STUDENT, TEACHER, Showing, embed
from trainer.evaluate import all_failed, due, measure
from trainer.measures import Measures
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.export import export
from trainer.models.original import Original
from trainer.optim import Pull, make_optimizer, share_of_rate
from trainer.planning.flops import Flops
from trainer.runs.checkpoint import Checkpoints, first_not_finite, means_over_ranks
from trainer.runs.metrics import LOSSES
from trainer.runs.run import Failures, Run, of_all
from trainer.runs.watch import Watch, traced
from trainer.strategies.launching import PRECISIONS, Launch
from trainer.strategies.pieces import put_together
from trainer.strategies.preparing import compile_blocks, is_compiled, prepare, start
from trainer.system.failures import Failed, on_all_ranks
from trainer.system.interruption import Asked, Interruption

SHARDS = 8  # that a message names


def train(config: Config) -> None:
    """Teach the objectives; measure before, during and after. All goes to the run's folder."""
    accelerator = start(config)
    with Interruption(accelerator, config.checkpoint.stop_after_minutes) as interruption:
        teach(config, accelerator, interruption)


def teach(config: Config, accelerator: Accelerator, interruption: Interruption) -> None:
    """All of a run, on this process."""
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    num_parts = accelerator.gradient_accumulation_steps  # backward passes a step
    objectives = config.objectives
    check_sizes(objectives, config.data.lanes, ranks, num_parts)
    launch = Launch.of_environment()
    launch.check(config.optimizer)
    set_seed(config.seed)
    run = Run(config, accelerator)
    saved = run.saved

    with run.timed("load"):
        clip = clips.load(config.model)
        lean(clip.model)
        towers = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
        if saved:
            saved.load_weights(towers)
        precision = PRECISIONS[accelerator.mixed_precision]
        autocasts = launch.autocasts and accelerator.native_amp  # which knows no fp16 on a CPU
        placed = config.memory.teacher
        original = Original(clip, config.trained, device, precision, autocasts, placed)
        teacher, weights = original.teacher, dict(original.towers.named_parameters())
        pull = Pull(config.optimizer.anchor, weights, 1 / num_parts)
        pull.attach(towers)
        watch = Watch(Flops.of(towers), accelerator, precision)
        show = Showing(towers, device, placed == "whole")
        if config.memory.activation_checkpointing:
            clips.recompute_activations(towers, is_compiled(accelerator))
        # The student and its optimizer, nothing else: a teacher that is prepared would train.
        towers = towers.to(device)
        bare = make_optimizer(towers, config.optimizer)
        student, optimizer, spread = prepare(accelerator, towers, bare, config.optimizer.clip)
        compile_blocks(accelerator, teacher)

        # Measures see other shapes: they are not worth a compilation.
        plain = accelerator.unwrap_model(student, keep_torch_compile=False)
        taught, learner = original.encoder(teacher), original.encoder(plain)
        loss_fns = {name: one.loss_fn(taught) for name, one in objectives.items()}
        known = known_embeddings(config, clip, original, taught, accelerator)
        # Before anything is measured: a shard may be missing.
        stream = saved.stream if saved else None
        drawn = Batches(objectives, config.data, clip, config.seed, rank, ranks, stream, known)

    saves = run.checkpoints(spread)
    if saved:
        saved.load_moments(spread, rank)
        before = saved.before
        if saved.step < config.steps:  # what comes after a save
            to_measure = due(config.evaluations, saved.step)
            run.log(saved.step, *measure(to_measure, learner, taught, at_hand=original.at_hand))
    else:
        spread.begin(weights)
        with run.timed("before"):
            before, failed = measure(config.evaluations, taught, taught, at_hand=original.at_hand)
            run.log(0, before, failed)

    first = saved.step if saved else 0
    left = config.steps - first
    window = saved.window(device) if saved else []  # losses since they were last logged
    skips = saved.skips if saved and accelerator.is_main_process else Skips()
    if not left:
        interruption.lift_limit()  # or one that is shorter than what is measured would never end

    def save(step: int) -> None:
        saves.save(step, drawn.order, batch.positions, before, skips, window)

    def measured(evaluations: Mapping[str, Evaluation], step: int) -> tuple[Measures, Failures]:
        """Told to stop meanwhile, the run leaves; going on, it measures again."""
        try:
            return measure(evaluations, learner, taught, interruption.check, original.at_hand)
        except Asked:
            if not saves.has(step):
                save(step)
            run.leave(step, saves)

    with (
        run.timed("train"),
        closing(drawn),
        closing(run.progress(watch.waiting(islice(drawn, left)), first, config.steps)) as shown,
    ):
        steps = traced(shown, first + 1, config.profile.steps, run.folder / "trace", rank)
        for step, batch in enumerate(steps, first + 1):
            rate = share_of_rate(step, config.steps, config.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["initial_lr"]
            pixels = batch.pixels.to(device)
            losses: dict[str, Tensor] = {}
            for part in batch.split(num_parts):
                to_teacher, to_student = show(part, pixels, TEACHER), show(part, pixels, STUDENT)
                with accelerator.accumulate(student):
                    with accelerator.autocast():
                        with torch.no_grad():
                            seen = embed(teacher, to_teacher, original.logit_scale)
                        learnt = embed(student, to_student)
                    loss = torch.zeros((), device=device)
                    for name, loss_fn in loss_fns.items():
                        terms = loss_fn(learnt[name], seen[name])
                        # In one order on all ranks, be a 0 in place of no rows where it may.
                        for term, value in sorted(terms.items()):
                            add(losses, f"{name}/{term}", value.detach().to(device) / num_parts)
                        loss = loss + objectives[name].options.weight * sum(terms.values())
                    if accelerator.sync_gradients:  # the last part: before anything is updated
                        is_asked, is_lost, is_unsaved = interruption.agree(
                            torch.stack(list(losses.values())), saves.failure is not None
                        )
                        if is_lost:
                            raise lost(step, losses, batch, saves)
                        if is_unsaved:
                            saves.settle()
                    accelerator.backward(loss)  # under DeepSpeed also the update
            if config.optimizer.anchor:
                pull.add(spread.trained)
                losses["optimizer/anchor"] = pull.distance
            largest = config.optimizer.clip or math.inf
            watch.gradient(accelerator.clip_grad_norm_(student.parameters(), largest))
            optimizer.step()
            optimizer.zero_grad()

            window.append(losses)
            skips += batch.skips
            if step % config.log_every == 0 or step == config.steps:
                told = mean_of(window, accelerator)
                passed = of_all(skips)
                told[LOSSES] = passed.bad.total()
                shards = {"bad_shards": passed.worst_shards(SHARDS)} if passed.bad else {}
                told_all = told | passed.by_reason() | watch.read()
                run.log(step, told_all, show=told, beside=shards)
                passed.judge(config.data.max_bad_share)
                window.clear()
            if step < config.steps:
                if saves.due(step) or is_asked:
                    with watch.aside():
                        save(step)
                if is_asked:
                    run.leave(step, saves)
                if evaluations := due(config.evaluations, step):
                    with watch.aside():
                        run.log(step, *measured(evaluations, step))
    run.saved_in(saves)
    with run.timed("export"):
        trained = put_together(spread.weights(), {})
        (spoilt,) = broadcast_object_list([first_not_finite(trained)])
        if spoilt:
            raise FloatingPointError(
                f"{spoilt} is not finite after the last step; nothing was exported. Lower "
                "optimizer.lr or the objectives' weights"
            )
        if accelerator.is_main_process:
            export(clip, trained, run.folder / "model", getattr(torch, config.export.dtype))
    with run.timed("after"):
        try:
            if config.evaluations and config.export.dtype != "float32":  # rounded: another model
                accelerator.wait_for_everyone()
                learner = on_all_ranks(partial(original.encoder_of_exported, run.folder / "model"))
            after, failed = measured(config.evaluations, config.steps)
        except Failed as error:  # on a host that does not have the run's folder
            after, failed = {}, all_failed(config.evaluations, str(error))
        run.log(config.steps, after, failed)
    run.finish(before, after, skips, config.steps)
    run.end()


def add(losses: dict[str, Tensor], name: str, value: Tensor) -> None:
    losses[name] = losses[name] + value if name in losses else value


def lost(
    step: int, losses: dict[str, Tensor], batch: Batch, saves: Checkpoints
) -> FloatingPointError:
    """What to say of a loss that is not finite; the same on all ranks, nothing was updated."""
    bad = {name: value.item() for name, value in losses.items() if not math.isfinite(value)}
    found = [one for one in gather_object([(bad, batch.shards)]) if one[0]]
    where = ", ".join(f"{name} is {value}" for name, value in found[0][0].items())
    shards = sorted(frozenset().union(*(own for _, own in found)))
    more = f" and {len(shards) - SHARDS} more" if len(shards) > SHARDS else ""
    newest = saves.newest()
    return FloatingPointError(
        f"the loss {where} at step {step}; nothing was updated or exported, "
        f"{f'{newest} is the last checkpoint' if newest else 'there is no checkpoint'}. "
        "Lower optimizer.lr or the objective's weight, or look at the shards of this step: "
        f"{', '.join(shards[:SHARDS])}{more}"
    )


def mean_of(window: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each loss since it was last logged, over all ranks; a collective."""
    # Over the ranks first, as they are saved: a run that goes on logs the same to the last bit.
    names, means = means_over_ranks(window, accelerator)
    return dict(zip(names, means.mean(0).tolist(), strict=True))
