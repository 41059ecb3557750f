"""YAML and dotted overrides to one frozen, validated Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from trainer.api import Evaluation, Objective, StrictModel, Tower
from trainer.configuration.mistakes import ConfigError, checked, did_you_mean, short, with_possible
from trainer.configuration.sections import (
    CheckpointConfig,
    DataConfig,
    ExportConfig,
    File,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    steps_for,
)
from trainer.configuration.yaml_text import apply_override, read_yaml
from trainer.registry import PluginError, load_plugins


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

    @property
    def steps_follow_people(self) -> bool:
        """Whether they are as many as `auto` gives, and so would be others for other people."""
        return self.steps == _auto_steps(self.objectives)

    def resolved(self) -> dict[str, Any]:
        """Plain data, every default written out; as a file it gives the same run again."""
        return {field.name: _plain(vars(self)[field.name]) for field in fields(self)}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


def _auto_steps(objectives: Mapping[str, Objective]) -> int:
    return max(
        steps_for(one.num_identities, by_pictures=Tower.IMAGE in one.towers)
        for one in objectives.values()
    )


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
    file = checked(File, raw, (), problems)
    named = raw.get("plugins")
    local = [base / one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    try:
        registry = load_plugins(local)
    except PluginError as error:
        raise ConfigError("\n".join([*problems, f"plugins: {error}"])) from error
    objectives = _chosen("objectives", raw, registry.objectives, problems)
    evaluations = _chosen("evaluations", raw, registry.evaluations, problems)
    problems += _named_as_groups(evaluations)
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
    problems += [
        f"objectives.{name}.roster: {one.kind} forgets nobody, but who is in a `roster` is "
        "certified as asked to be forgotten; the plugin must call that option otherwise"
        for name, one in made["objectives"].items()
        if vars(objectives[name][1]).get("roster") and not one.num_identities
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    rest = {field: vars(file)[field] for field in File.model_fields if field not in made}
    if file.steps == "auto":
        if not any(one.num_identities for one in made["objectives"].values()):
            raise ConfigError(
                "steps: auto counts people to forget, and there are none; give a number"
            )
        rest["steps"] = _auto_steps(made["objectives"])
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
            continue  # said already, by File
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


def _named_as_groups(evaluations: Mapping[str, tuple[type[Evaluation], Any]]) -> list[str]:
    """What is wrong with names: one's measures would be taken for those of a group of another."""
    problems = []
    for name, (cls, options) in evaluations.items():
        groups = vars(options).get("groups")
        if name == cls.kind and isinstance(groups, Mapping):  # its measures begin with the kind
            problems += [
                f"evaluations.{other}: {name}, of the same kind, has a group of that name; "
                "rename the evaluation, or their measures are taken for each other's"
                for other in groups
                if other != name and other in evaluations and evaluations[other][0] is cls
            ]
    return problems


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
