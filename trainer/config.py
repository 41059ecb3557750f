"""YAML and dotted overrides to one frozen, validated Config."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from trainer.api import Evaluation, Objective, StrictModel
from trainer.registry import PluginError, load_plugins

MAX_BYTES = 1_000_000  # of a configuration file

# accelerate's own names, written out: importing accelerate takes seconds.
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
# Names become parts of a measure's name and of an override's path.
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]
Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, a line for each mistake."""


class _Section(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


class ModelConfig(_Section):
    name: str = Field(description="open_clip architecture, local-dir:FOLDER or hf-hub:ID")
    pretrained: str | None = Field(None, description="tag or checkpoint file")
    random_weights: bool = Field(False, description="start from nothing")
    freeze_norms: bool = Field(False, description="normalisation layers stay (the paper's way)")
    freeze: list[str] = Field([], description="glob patterns of parameter names that stay")


class DataConfig(_Section):
    shards: list[str] = Field(min_length=1, description="tar files: paths, braces, globs, URLs")
    workers: int = Field(2, ge=0, description="loader processes of each rank")
    lanes: int = Field(64, gt=0, description="a multiple of the number of ranks")
    shuffle: int = Field(100, gt=0, description="samples shuffled together within a lane")

    @field_validator("shards", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


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
    trackers: list[Tracker] = Field([], description="accelerate's, beside metrics.jsonl")
    plugins: list[str] = Field([], description="plugin files, relative to this one")
    seed: int = Field(0, ge=0, description="of everything drawn")
    output: Path = Field(description="the run's folder")
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
        if twice := _repeated(trackers):
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
    trackers: tuple[str, ...]
    plugins: tuple[str, ...]  # absolute: what is saved is read from another folder
    seed: int
    output: Path
    export: ExportConfig

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
    raw = _read(path)
    problems: list[str] = []
    for override in overrides:
        try:
            _override(raw, override)
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
    file = _checked(_File, raw, (), problems)
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
                f"missing{_did_you_mean(name, others, f'{section}.')}"
                if kind is None
                else f"found {_short(kind)}{_did_you_mean(kind, offered)}"
            )
            problems.append(f"{section}.{name}.kind: {_with_possible(what, offered)}")
        elif checked := _checked(offered[kind].Options, options, (section, str(name)), problems):
            found[name] = offered[kind], checked
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


# What is wrong, in words.


def _checked(model: type[BaseModel], raw: Any, above: tuple[str, ...], problems: list[str]) -> Any:
    """The validated model, or None and a line for each mistake in it."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        musts: dict[str, list[str]] = {}  # a union has something to say for each of its types
        for one in error.errors(include_url=False):
            where = ".".join((*above, *_path(one, raw)))
            start, must = _wording(one, model)
            musts.setdefault(f"{where}: {start}", []).append(must)
        problems += [start + " or ".join(dict.fromkeys(said)) for start, said in musts.items()]
        return None


def _path(error: Any, raw: Any) -> list[str]:
    """Where the mistake is in what was written: pydantic's own marks, as of unions, left out."""
    path = []
    for part in error["loc"]:
        try:
            raw = raw[part]
        except (TypeError, LookupError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        path.append(str(part))
    return path


def _wording(error: Any, model: type[BaseModel]) -> tuple[str, str]:
    """What was found, and what is possible."""
    known = _fields_at(model, error["loc"][:-1])
    last = error["loc"][-1] if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return _with_possible(f"unknown option{_did_you_mean(last, known)}", known), ""
    if error["type"] == "missing":
        field = known.get(last)
        return f"missing; {field.description}" if field and field.description else "missing", ""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("should ", "must ").replace(" after validation", "")
    if error["type"] in ("dict_type", "model_type"):
        message = "must be a section, `option: value` lines"
    if error["type"] in ("literal_error", "enum"):
        options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        message += _did_you_mean(error["input"], options)
    if error["type"] == "string_pattern_mismatch" and last == "[key]":
        message = "a name must be of letters, digits, _ and -"
    return f"found {_short(error['input'])}; ", message


def _fields_at(model: type[BaseModel], path: Iterable[str | int]) -> dict[Any, Any]:
    for part in path:
        if field := model.model_fields.get(str(part)):
            section = _model_in(field.annotation)
            if section is None:
                return {}
            model = section
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if only perhaps or many times."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_in(one))), None)


def _short(found: Any) -> str:
    return _REPR.repr(found)


_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlevel = 80, 2


def _did_you_mean(found: Any, possible: Iterable[str], prefix: str = "") -> str:
    # Text alone: what YAML's anchors share can be written out to gigabytes.
    close = difflib.get_close_matches(found, possible, n=1) if isinstance(found, str) else []
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def _with_possible(mistake: str, possible: Iterable[str]) -> str:
    names = ", ".join(sorted(possible)) or "none"
    return f"{mistake}{'' if mistake.endswith('?') else ';'} possible: {names}"


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


# YAML.


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, a key is text, and a key given twice a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # As it is written: later, merges (`<<`) have brought in keys that may stand twice.
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"  # an objective named 1, or `no`
        if twice := _repeated(key.value for key in keys):
            mark = next(key.start_mark for key in reversed(keys) if key.value == twice[0])
            raise yaml.MarkedYAMLError(problem=f"{twice[0]} is given twice", problem_mark=mark)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no UTF-8 text; is it a configuration?") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; is it a configuration?")
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else _short(raw)
        raise ConfigError(f"{path}: found {what}; a configuration is `option: value` lines")
    return raw


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # derived from the safe one
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deep") from None
    except Exception as error:  # PyYAML lets more than its own escape: a bad date, a bad tag
        message = " ".join(str(error).split())
        raise ConfigError(f"{source}: this is no YAML: {message}") from None


def _override(raw: dict[str, Any], override: str) -> None:
    """`objectives.names.weight=0.8`: the value is YAML; new keys are judged with the rest."""
    path, equals, value = override.partition("=")
    *parents, last = path.split(".")
    if not (equals and last and all(parents)):
        raise ConfigError(f"override {override!r}: write it as path.to.option=value")
    place = raw
    for depth, part in enumerate(parents):
        section = place.get(part)
        if section is not None and not isinstance(section, dict):
            above = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"override {path}: {above} is {_short(section)}, not a section with options"
            )
        # A copy: what YAML's anchors share is changed in this place only.
        place[part] = dict(section or {})
        place = place[part]
    try:
        place[last] = _parse(value, f"override {path}")
    except ConfigError as error:
        raise ConfigError(f"{error}; text with signs of YAML's own needs quotes") from None
