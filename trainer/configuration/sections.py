"""What a configuration file holds: its sections, their options, defaults and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from trainer.api import OneOrMany, Source, StrictModel
from trainer.configuration.mistakes import repeated

# accelerate's own names, written out: importing accelerate takes seconds. Not clearml, which sends
# what is not committed along: a roster may be in the user's repository.
Tracker = Literal[
    "aim", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
# Names become parts of a measure's name and of an override's path.
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]
Share = Annotated[float, Field(ge=0, lt=1)]
FEWEST_STEPS = 200  # of `steps: auto`


class Section(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


class ModelConfig(Section):
    name: str = Field(description="open_clip architecture, local-dir:FOLDER or hf-hub:ID")
    pretrained: str | None = Field(None, description="tag or checkpoint file")
    random_weights: bool = Field(False, description="start from nothing")
    freeze_norms: bool = Field(False, description="normalisation layers stay (the paper's way)")
    freeze: list[str] = Field([], description="glob patterns of parameter names that stay")


class DataConfig(Section):
    shards: Annotated[list[str | Source], OneOrMany] = Field(
        min_length=1, description="tar, text or Parquet files: paths, braces, globs, URLs"
    )
    workers: int = Field(2, ge=0, description="loader processes of each rank")
    lanes: int = Field(64, gt=0, description="a multiple of the number of ranks")
    shuffle: int = Field(100, gt=0, description="samples shuffled together within a lane")
    max_bad_share: float = Field(
        0.1, ge=0, le=1, description="of samples that cannot be used; above it the run stops"
    )
    index: str | None = Field(None, description="folder of the shards' indexes; else beside them")
    cache: str | None = Field(None, description="folder for shards that are read from elsewhere")
    patience_seconds: float = Field(
        300.0, ge=0, description="for a server that does not answer, before the run stops"
    )
    caption_column: str | None = Field(
        None, description="of Parquet files; else caption, TEXT or text"
    )
    embeddings: Literal["make", "use"] | None = Field(
        None,
        description="the teacher's of clean samples, kept where the indexes are: make what is "
        "missing, or use what must be there; null: computed in every step",
    )


class OptimizerConfig(Section):
    kind: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of blocks, AdamW for all else; not under ZeRO"
    )
    lr: float = Field(gt=0, description="the highest learning rate, after the warm-up")
    image_lr: float | None = Field(
        None, gt=0, description="the image tower's own; null: that of all"
    )
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="AdamW's")
    eps: float = Field(1e-6, gt=0, description="AdamW's")
    weight_decay: float = Field(0.0, ge=0, description="a step, times the rate; not on vectors")
    anchor: float = Field(0.0, ge=0, description="pull to the original weights (the paper's)")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: any")
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises from 0")
    milestones: list[int] = Field(
        [], description="steps after which 'steps' cuts the rate, and 'cosine' begins anew"
    )
    schedule: Literal["constant", "cosine", "steps"] = Field("cosine", description="of the rate")
    gamma: float = Field(0.5, gt=0, description="factor by which it is cut")

    @field_validator("schedule")
    @classmethod
    def _heeds_milestones(cls, schedule: str, info: ValidationInfo) -> str:
        milestones = info.data.get("milestones")  # absent if they are wrong themselves
        if schedule == "steps" and milestones == []:
            raise ValueError("cuts the rate at milestones, and there are none")
        if schedule == "constant" and milestones:
            raise ValueError("heeds no milestones; take steps or cosine")
        return schedule


class CheckpointConfig(Section):
    every: int | None = Field(
        100, gt=0, description="steps; null: only where the run is told to stop"
    )
    keep: int = Field(2, gt=0, description="the last ones")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: a run of this configuration that was cut off goes on"
    )
    stop_after_minutes: float | None = Field(
        None, gt=0, description="save and leave then, to be started again; null: when it is done"
    )


class MemoryConfig(Section):
    activation_checkpointing: bool = Field(
        False, description="keep what enters a block, compute the rest again: a third slower"
    )
    teacher: Literal["whole", "sharded", "offloaded"] = Field(
        "whole", description="on each device; a part on each; or parts in the machine's memory"
    )


class ProfileConfig(Section):
    steps: tuple[int, int] | None = Field(
        None, description="first and last of which a trace is kept, in trace/; null: none"
    )

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError("must be the first step and the last, counted from 1: [20, 25]")
        return steps


class ExportConfig(Section):
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="of weights")


def steps_for(people: int, by_pictures: bool = False) -> int:
    """In tens, fewer than in proportion to their number: what one needs is of use to others.

    For 64 people 400 by their names and 800 by their pictures, for 4,096 3,200 and 25,600: two
    names differ in a word, two faces in a little of everything.
    """
    steps = 25 * people ** (5 / 6) if by_pictures else 50 * people**0.5
    return max(FEWEST_STEPS, 10 * round(steps / 10))


class File(Section):
    """A configuration file as it is written; objectives and evaluations by kind."""

    model: ModelConfig = Field(description="the CLIP to change: name, pretrained, ...")
    data: DataConfig = Field(description="clean image-text pairs: shards, ...")
    objectives: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="what is taught: a name for each, its kind and options"
    )
    evaluations: dict[Name, dict[str, Any]] = Field({}, description="what is measured, likewise")
    optimizer: OptimizerConfig = Field(description="lr, ...")
    steps: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        description="optimizer steps; auto: as many as people to forget need"
    )
    log_every: int = Field(10, gt=0, description="steps")
    margin: float = Field(
        0.01, gt=0, lt=1, description="of an ordinary task, up to which less is not worse"
    )
    trackers: list[Tracker] = Field([], description="accelerate's, beside metrics.jsonl")
    plugins: list[str] = Field([], description="plugin files, relative to this one")
    seed: int = Field(0, ge=0, description="of everything drawn")
    timeout_seconds: float = Field(
        600.0, gt=0, description="for a process or host that does not answer the others"
    )
    output: Path = Field(description="the run's folder")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="every, keep, resume")
    memory: MemoryConfig = Field(MemoryConfig(), description="for models that do not fit")
    profile: ProfileConfig = Field(ProfileConfig(), description="steps")
    export: ExportConfig = Field(ExportConfig(), description="of the trained model")

    @field_validator("steps")
    @classmethod
    def _warmup_ends(cls, steps: int | str, info: ValidationInfo) -> int | str:
        optimizer = info.data.get("optimizer")  # absent if it is wrong itself
        fewest = steps_for(0) if isinstance(steps, str) else steps
        if optimizer is not None and optimizer.warmup_steps >= fewest:
            raise ValueError(
                f"must be greater than optimizer.warmup_steps ({optimizer.warmup_steps})"
            )
        return steps

    @field_validator("memory")
    @classmethod
    def _teacher_is_whole(cls, memory: MemoryConfig, info: ValidationInfo) -> MemoryConfig:
        # All processes run the forwards of one in parts together; what is known, one need not run.
        data = info.data.get("data")
        if data is not None and data.embeddings and memory.teacher != "whole":
            raise ValueError(f"teacher {memory.teacher} does not go with data.embeddings")
        return memory

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: list[str]) -> list[str]:
        if twice := repeated(trackers):
            raise ValueError(f"{twice[0]} stands there twice")
        return trackers

    @field_validator("output")
    @classmethod
    def _own_folder(cls, output: Path) -> Path:
        # A run sets an earlier one's folder aside: never the one that everything stands in.
        if Path.cwd().is_relative_to(output.resolve()):
            raise ValueError("must be a folder of its own, not one that holds the current folder")
        return output
