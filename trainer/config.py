"""YAML and dotted overrides to one frozen, validated Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from trainer.api import Evaluation, Objective, OneOrMany, Source, StrictModel, Tower
from trainer.mistakes import ConfigError, checked, did_you_mean, repeated, short, with_possible
from trainer.registry import PluginError, load_plugins
from trainer.yaml_text import apply_override, read_yaml

# accelerate's own names, written out: importing accelerate takes seconds.
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
# Names become parts of a measure's name and of an override's path.
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


class ModelConfig(_Section):
    name: str = Field(description="open_clip architecture, local-dir:FOLDER or hf-hub:ID")
    pretrained: str | None = Field(None, description="tag or checkpoint file")
    random_weights: bool = Field(False, description="start from nothing")
    freeze_norms: bool = Field(False, description="normalisation layers stay (the paper's way)")
    freeze: list[str] = Field([], description="glob patterns of parameter names that stay")


class DataConfig(_Section):
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


class OptimizerConfig(_Section):
    lr: float = Field(gt=0, description="the highest learning rate, after the warm-up")
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="AdamW's")
    eps: float = Field(1e-6, gt=0, description="AdamW's")
    weight_decay: float = Field(0.0, ge=0, description="a step, times the rate; not on vectors")
    anchor: float = Field(0.0, ge=0, description="pull to the original weights (the paper's)")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: any")
    schedule: Literal["constant", "cosine", "steps"] = Field("cosine", description="of the rate")
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises from 0")
    milestones: list[int] = Field([], description="steps after which 'steps' cuts the rate")
    gamma: float = Field(0.5, gt=0, description="factor by which it is cut")


class CheckpointConfig(_Section):
    every: int | None = Field(100, gt=0, description="steps; null: none")
    keep: int = Field(2, gt=0, description="the last ones")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: a run of this configuration that was cut off goes on"
    )
    stop_after_minutes: float | None = Field(
        None, gt=0, description="save and leave then, to be started again; null: when it is done"
    )


class MemoryConfig(_Section):
    activation_checkpointing: bool = Field(
        False, description="keep what enters a block, compute the rest again: a third slower"
    )
    teacher: Literal["whole", "sharded", "offloaded"] = Field(
        "whole", description="on each device; a part on each; or parts in the machine's memory"
    )


class ProfileConfig(_Section):
    steps: tuple[int, int] | None = Field(
        None, description="first and last of which a trace is kept, in trace/; null: none"
    )

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError("must be the first step and the last, counted from 1: [20, 25]")
        return steps


class ExportConfig(_Section):
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="of weights")


class _File(_Section):
    """A configuration file as it is written; objectives and evaluations by kind."""

    model: ModelConfig = Field(description="the CLIP to change: name, pretrained, ...")
    data: DataConfig = Field(description="clean image-text pairs: shards, ...")
    objectives: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="what is taught: a name for each, its kind and options"
    )
    evaluations: dict[Name, dict[str, Any]] = Field({}, description="what is measured, likewise")
    optimizer: OptimizerConfig = Field(description="lr, ...")
    steps: int = Field(gt=0, description="optimizer steps")
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
    def _warmup_ends(cls, steps: int, info: ValidationInfo) -> int:
        optimizer = info.data.get("optimizer")  # absent if it is wrong itself
        if optimizer is not None and optimizer.warmup_steps >= steps:
            raise ValueError(
                f"must be greater than optimizer.warmup_steps ({optimizer.warmup_steps})"
            )
        return steps

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


@dataclass(frozen=True)
class Config:
    """A run, whole and checked; objectives and evaluations made."""

    model: ModelConfig
    data: DataConfig
    objectives: Mapping[str, Objective]
    evaluations: Mapping[str, Evaluation]
    optimizer: OptimizerConfig
    steps: int
    log_every: int
    margin: float
    trackers: tuple[str, ...]
    plugins: tuple[str, ...]  # absolute: what is saved is read from another folder
    seed: int
    timeout_seconds: float
    output: Path
    checkpoint: CheckpointConfig
    memory: MemoryConfig
    profile: ProfileConfig
    export: ExportConfig

    @property
    def trained(self) -> frozenset[Tower]:
        """The towers that some objective trains."""
        return frozenset[Tower]().union(*(one.towers for one in self.objectives.values()))

    @property
    def trains_temperature(self) -> bool:
        return any(one.trains_temperature for one in self.objectives.values())

    def resolved(self) -> dict[str, Any]:
        """Plain data, every default written out; as a file it gives the same run again."""
        return {field.name: _plain(vars(self)[field.name]) for field in fields(self)}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, StrictModel):
        return value.model_dump(mode="json")
    if isinstance(value, (Objective, Evaluation)):
        return {"kind": value.kind} | _plain(value.options)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read, override, validate once. Raises ConfigError naming every mistake."""
    path = Path(path)
    raw = read_yaml(path)
    problems: list[str] = []
    for override in overrides:
        try:
            apply_override(raw, override)
        except ConfigError as error:
            problems.append(str(error))
    return _validated(raw, path.parent, path.stem, problems)


def validate(raw: dict[str, Any], base: Path, name: str) -> Config:
    """Plain data to a Config. base: where local plugins are found; name: for the output's."""
    return _validated(raw, base, name, [])


def _validated(raw: dict[str, Any], base: Path, name: str, problems: list[str]) -> Config:
    # A section whose lines are all commented out is one that is not there.
    written = {option: value for option, value in raw.items() if value is not None}
    raw = {"output": f"runs/{name}"} | written
    file = checked(_File, raw, (), problems)
    named = raw.get("plugins")
    local = [base / one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    try:
        registry = load_plugins(local)
    except PluginError as error:
        raise ConfigError("\n".join([*problems, f"plugins: {error}"])) from error
    objectives = _chosen("objectives", raw, registry.objectives, problems)
    evaluations = _chosen("evaluations", raw, registry.evaluations, problems)
    # Only where every entry is right: a wrong one may have the weight.
    all_right = bool(objectives) and len(objectives) == len(raw["objectives"])
    if all_right and not any(options.weight for _, options in objectives.values()):
        problems.append("objectives: found no weight above 0; give one to at least one of them")
    if problems or file is None:
        raise ConfigError("\n".join(problems))
    made: dict[str, Any] = {
        "objectives": _made("objectives", objectives, file.seed, problems),
        "evaluations": _made("evaluations", evaluations, file.seed, problems),
    }
    if problems:
        raise ConfigError("\n".join(problems))
    rest = {field: vars(file)[field] for field in _File.model_fields if field not in made}
    rest |= {"trackers": tuple(file.trackers), "plugins": tuple(str(p.resolve()) for p in local)}
    return Config(**made, **rest)


def _chosen(
    section: str, raw: Mapping, offered: Mapping[str, Any], problems: list[str]
) -> dict[str, tuple[type, Any]]:
    """Each entry's class and its options, of the entries that are right."""
    entries = raw.get(section)
    entries = entries if isinstance(entries, dict) else {}
    found = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            continue  # said already, by _File
        options = {key: value for key, value in entry.items() if key != "kind"}
        kind = entry.get("kind")
        if not (isinstance(kind, str) and kind in offered):
            # An override with a misspelt name makes a new entry, of no kind.
            others = [other for other in entries if other != name and isinstance(other, str)]
            what = (
                f"missing{did_you_mean(name, others, f'{section}.')}"
                if kind is None
                else f"found {short(kind)}{did_you_mean(kind, offered)}"
            )
            problems.append(f"{section}.{name}.kind: {with_possible(what, offered)}")
        elif made := checked(offered[kind].Options, options, (section, str(name)), problems):
            found[name] = offered[kind], made
    return found


def _made(section: str, chosen: dict, seed: int, problems: list[str]) -> dict[str, Any]:
    made = {}
    for name, (cls, options) in chosen.items():
        try:
            made[name] = cls(options, seed)
        except (ValueError, OSError) as error:
            # Further lines, a roster's bad rows, are set in: one mistake, one paragraph.
            message = str(error).strip().replace("\n", "\n  ")
            problems.append(f"{section}.{name}: {message or type(error).__name__}")
    return made
