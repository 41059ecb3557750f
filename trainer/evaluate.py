"""Run the evaluations that a configuration names, in training or alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate.utils import set_seed

from trainer.api import Encoder, Evaluation, Tower
from trainer.configuration.config import Config
from trainer.configuration.sections import ModelConfig
from trainer.data.skips import Skips
from trainer.measures import Measures, complaint, packed
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.clip import Clip, Towers
from trainer.models.encoder import ClipEncoder
from trainer.models.zoo import has_preprocessing_beside
from trainer.reports.results import path_of
from trainer.runs.run import Failures, Run
from trainer.runs.saved import is_saved, lay_over
from trainer.strategies.preparing import start
from trainer.system.failures import Failed, on_all_ranks


def measure(
    evaluations: Mapping[str, Evaluation],
    student: Encoder,
    teacher: Encoder,
    check: Callable[[], object] = lambda: None,
    at_hand: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Measures, Failures]:
    """Every measure by its full name: `zero_shot/colour/accuracy` for a zero_shot named colour.

    And why, for each evaluation that gave none: one that raises, on whatever rank, ends alone.
    check: called before each; what it raises ends all. at_hand: each is run within.
    """
    found: Measures = {}
    failed: Failures = {}
    for name, evaluation in evaluations.items():
        check()
        path = path_of(name, evaluation.kind)
        try:
            own = on_all_ranks(partial(_all_of, evaluation, student, teacher, at_hand))
        except Failed as error:
            failed[path] = str(error)
        else:
            found |= {f"{path}/{measure}": value for measure, value in own.items()}
    return found, failed


def _all_of(
    evaluation: Evaluation,
    student: Encoder,
    teacher: Encoder,
    at_hand: Callable[[], AbstractContextManager[object]],
) -> Measures:
    with at_hand():
        found = dict(evaluation.run(student, teacher))
    for name, value in found.items():  # what no checkpoint could hold fails here, and alone
        if wrong := complaint(value):
            raise TypeError(f"{evaluation.kind} gives {name} as {wrong}")
    json.dumps(packed(found))
    return found


def all_failed(evaluations: Mapping[str, Evaluation], why: str) -> Failures:
    return {path_of(name, one.kind): why for name, one in evaluations.items()}


def due(evaluations: Mapping[str, Evaluation], step: int) -> dict[str, Evaluation]:
    return {
        name: evaluation
        for name, evaluation in evaluations.items()
        if evaluation.options.every and step % evaluation.options.every == 0
    }


def evaluate_checkpoint(config: Config, checkpoint: str | None) -> None:
    """Measure a checkpoint beside the configuration's model; the same files as of a run, no model.

    checkpoint: weights of the same architecture, the folder of an exported model, or a step's of a
    run's `checkpoints/`; None: the configuration's model alone.
    """
    if not config.evaluations:
        raise ValueError("evaluations: the configuration names none; there is nothing to measure")
    accelerator = start(config)
    set_seed(config.seed)  # where the configuration's own model has random weights
    run = Run(config, accelerator, trains=False)

    def encoder(clip: Clip, saved: Path | None = None) -> ClipEncoder:
        lean(clip.model)
        towers = Towers(clip, frozenset(Tower))
        if saved is not None:
            lay_over(saved, towers)
        towers = clips.frozen(towers).to(accelerator.device)
        return ClipEncoder(towers, towers, clip, accelerator.device)

    with run.timed("load"):
        clip = clips.load(config.model)
        found = original = encoder(clip)
        if checkpoint and is_saved(Path(checkpoint)):
            found = encoder(replace(clip, model=deepcopy(clip.model)), Path(checkpoint))
        elif checkpoint:
            loaded = clips.load(_model_of(config.model, checkpoint))
            is_bare = Path(checkpoint).is_file() and not has_preprocessing_beside(Path(checkpoint))
            if is_bare and not config.model.random_weights:
                # It does not say how its pictures are prepared: as the model's that it is of.
                loaded = replace(loaded, prepare=clip.prepare)
            found = encoder(loaded)
    with run.timed("before"):
        before, failed = measure(config.evaluations, original, original)
        after = before
    if checkpoint:
        with run.timed("after"):
            after, failed_after = measure(config.evaluations, found, original)
        failed |= failed_after
    run.log(0, {}, failed)
    run.finish(before, after, Skips(), steps=0)
    run.end()
    if failed:
        raise SystemExit(1)  # to measure was all that was asked for


def _model_of(model: ModelConfig, checkpoint: str) -> ModelConfig:
    here = {"pretrained": checkpoint, "random_weights": False}
    if Path(checkpoint).is_dir():
        here |= {"name": f"local-dir:{checkpoint}", "pretrained": None}
    return model.model_copy(update=here)
