"""YAML and dotted overrides to one frozen, validated Config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from trainer.api import Evaluation, Objective, StrictModel
from trainer.registry import load_plugins

MAX_BYTES = 1_000_000  # of a configuration file
TRACKERS = ("wandb", "tensorboard", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, a line for each mistake."""


class ModelConfig(StrictModel):
    name: str = Field(description="open_clip architecture, local-dir:FOLDER or hf-hub:ID")
    pretrained: str | None = Field(None, description="tag or checkpoint file")
    random_weights: bool = Field(False, description="start from nothing")
    freeze_norms: bool = Field(False, description="normalisation layers stay (the paper's way)")
    freeze: list[str] = Field([], description="patterns of parameter names that stay")


class DataConfig(StrictModel):
    shards: list[str] = Field(min_length=1, description="tar files: paths, braces, globs, addresses")
    workers: int = Field(2, ge=0, description="loader processes of each rank")
    lanes: int = Field(64, gt=0, description="a multiple of the number of ranks")
    shuffle: int = Field(1000, gt=0, description="samples shuffled together within a lane")

    @field_validator("shards", mode="before")
    @classmethod
    def _one_or_many(cls, value):
        return [value] if isinstance(value, str) else value


class OptimizerConfig(StrictModel):
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    anchor: float = Field(0.0, ge=0, description="pull to the original weights (the paper's)")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    milestones: list[int] = Field([], description="steps after which schedule 'steps' cuts the rate")
    gamma: float = Field(0.5, gt=0, description="by which it is cut")


class ExportConfig(StrictModel):
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class _File(StrictModel):
    """A configuration file as it is written; objectives and evaluations by kind."""

    model: ModelConfig
    data: DataConfig
    objectives: dict[str, dict[str, Any]] = Field(min_length=1)
    evaluations: dict[str, dict[str, Any]] = {}
    optimizer: OptimizerConfig
    steps: int = Field(gt=0, description="optimizer steps")
    log_every: int = Field(10, gt=0, description="steps")
    trackers: list[Literal[TRACKERS]] = []
    plugins: list[str] = Field([], description="plugin files, relative to this one")
    seed: int = Field(0, ge=0)
    output: Path = Field(description="the run's folder")
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _warmup_ends(self):
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be less than "
                f"steps {self.steps}"
            )
        return self


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
    trackers: tuple[str, ...]
    plugins: tuple[str, ...]
    seed: int
    output: Path
    export: ExportConfig

    def resolved(self) -> dict[str, Any]:
        """Plain data, every default written out."""
        return {
            "model": self.model.model_dump(mode="json"),
            "data": self.data.model_dump(mode="json"),
            "objectives": _dumped(self.objectives),
            "evaluations": _dumped(self.evaluations),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "steps": self.steps,
            "log_every": self.log_every,
            "trackers": list(self.trackers),
            "plugins": list(self.plugins),
            "seed": self.seed,
            "output": str(self.output),
            "export": self.export.model_dump(mode="json"),
        }

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


def _dumped(made: Mapping[str, Objective | Evaluation]) -> dict[str, dict]:
    return {
        name: {"kind": one.kind} | one.options.model_dump(mode="json") for name, one in made.items()
    }


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read, override, validate once. Raises ConfigError naming every mistake, or OSError."""
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; is it a configuration?")
    raw = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: found {type(raw).__name__}; a configuration is `key: value` lines")
    for override in overrides:
        _override(raw, override)
    raw.setdefault("output", f"runs/{path.stem}")
    return validate(raw, path.parent)


def validate(raw: dict[str, Any], folder: Path) -> Config:
    """Plain data to a Config; local plugins are found from `folder`."""
    plugins = raw.get("plugins") or []
    registry = load_plugins([folder / one for one in plugins])
    problems: list[str] = []
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        problems += [describe(one, _File, raw) for one in error.errors()]
        file = None
    sections = {
        section: _options(raw.get(section), section, offered, problems)
        for section, offered in (
            ("objectives", registry.objectives),
            ("evaluations", registry.evaluations),
        )
    }
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    made = {section: _make(options, section, file.seed, problems) for section, options in sections.items()}
    if problems:
        raise ConfigError("\n".join(problems))
    plain = {name: getattr(file, name) for name in _File.model_fields if name not in sections}
    plain |= {"trackers": tuple(file.trackers), "plugins": tuple(file.plugins)}
    return Config(**plain, **made)


def _options(entries: Any, section: str, offered: Mapping[str, type], problems: list[str]) -> dict:
    """Each entry's class and its validated options."""
    found = {}
    for name, entry in (entries if isinstance(entries, dict) else {}).items():
        path = f"{section}.{name}"
        if not isinstance(entry, dict):
            continue  # already said by _File
        kind = entry.get("kind")
        if kind not in offered:
            what = "missing" if kind is None else f"found {kind!r}{_did_you_mean(kind, offered)}"
            problems.append(f"{path}.kind: {what}; possible: {', '.join(sorted(offered))}")
            continue
        options = {key: value for key, value in entry.items() if key != "kind"}
        try:
            found[name] = offered[kind], offered[kind].Options.model_validate(options)
        except ValidationError as error:
            model = offered[kind].Options
            problems += [f"{path}.{describe(one, model, options)}" for one in error.errors()]
    return found


def _make(options: dict, section: str, seed: int, problems: list[str]) -> dict:
    made = {}
    for name, (cls, chosen) in options.items():
        try:
            made[name] = cls(chosen, seed)
        except (ValueError, OSError) as error:
            problems.append(f"{section}.{name}: {error}")
    return made


def describe(error: dict, model: type[StrictModel], raw: Any) -> str:
    """One mistake: where it is, what was found, what is possible."""
    path = ".".join(str(part) for part in error["loc"])
    fields = _fields_at(model, error["loc"][:-1])
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        hint = _did_you_mean(name, fields)
        return f"{path}: unknown option{hint}; possible: {', '.join(sorted(fields))}"
    if error["type"] == "missing":
        field = fields.get(error["loc"][-1])
        meaning = f"; {field.description}" if field is not None and field.description else ""
        return f"{path}: missing{meaning}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    found = "" if isinstance(error["input"], dict) else f"found {error['input']!r}; "
    return f"{path}: {found}{message}" if path else message


def _fields_at(model: type[StrictModel], path: Sequence[str | int]) -> dict:
    for part in path:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None or not isinstance(field.annotation, type):
            return {}
        if not issubclass(field.annotation, StrictModel):
            return {}
        model = field.annotation
    return model.model_fields


def _did_you_mean(found: Any, possible) -> str:
    close = difflib.get_close_matches(str(found), list(possible), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number and a key given twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ConfigError(
                f"line {node.start_mark.line + 1}: {', '.join(sorted(twice))} is given twice"
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (derived from SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {getattr(error, 'problem', error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from None


def _override(raw: dict, override: str) -> None:
    """`objectives.names.weight=0.8`: the value is YAML; new keys are judged with the rest."""
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r}: write it as path.to.option=value")
    *parents, last = path.split(".")
    place = raw
    for depth, part in enumerate(parents):
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            above = ".".join(parents[: depth + 1])
            raise ConfigError(f"override {path}: {above} is a value, not a section")
    place[last] = _parse(value, f"override {path}")
