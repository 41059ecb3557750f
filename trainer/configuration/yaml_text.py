"""YAML as people write it, and overrides of it on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from trainer.configuration.mistakes import ConfigError, repeated, short

MAX_BYTES = 1_000_000  # of a configuration file


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, a key is text, and a key given twice a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # As it is written: later, merges (`<<`) have brought in keys that may stand twice.
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"  # an objective named 1, or `no`
        if twice := repeated(key.value for key in keys):
            mark = next(key.start_mark for key in reversed(keys) if key.value == twice[0])
            raise yaml.MarkedYAMLError(problem=f"{twice[0]} is given twice", problem_mark=mark)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
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
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else short(raw)
        raise ConfigError(f"{path}: found {what}; a configuration is `option: value` lines")
    return raw


def parse_yaml(text: str, source: str) -> Any:
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


def apply_override(raw: dict[str, Any], override: str) -> None:
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
                f"override {path}: {above} is {short(section)}, not a section with options"
            )
        # A copy: what YAML's anchors share is changed in this place only.
        place[part] = dict(section or {})
        place = place[part]
    try:
        place[last] = parse_yaml(value, f"override {path}")
    except ConfigError as error:
        raise ConfigError(f"{error}; text with signs of YAML's own needs quotes") from None
