"""What is wrong with a configuration, in words: where, what was found, what is possible."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trainer.api import StrictModel
from trainer.system.addresses import shown


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, a line for each mistake."""


def checked(model: type[BaseModel], raw: Any, above: tuple[str, ...], problems: list[str]) -> Any:
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
        return with_possible(f"unknown option{did_you_mean(last, known)}", known), ""
    if error["type"] == "missing":
        field = known.get(last)
        return f"missing; {field.description}" if field and field.description else "missing", ""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("should ", "must ").replace(" after validation", "")
    if error["type"] in ("dict_type", "model_type"):
        message = "must be a section, `option: value` lines"
    if error["type"] in ("literal_error", "enum"):
        options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        message += did_you_mean(error["input"], options)
    if error["type"] == "string_pattern_mismatch" and last == "[key]":
        message = "a name must be of letters, digits, _ and -"
    return f"found {short(error['input'])}; ", message


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


def short(found: Any) -> str:
    return _Short().repr(found)


class _Short(reprlib.Repr):
    """Of what is told alone, each address as it is shown: what YAML's anchors share can be written
    out to gigabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxlevel = 80, 2

    def repr_str(self, text: str, level: int) -> str:
        return super().repr_str(shown(text), level)


def did_you_mean(found: Any, possible: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(found, possible, n=1) if isinstance(found, str) else []
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def with_possible(mistake: str, possible: Iterable[str]) -> str:
    names = ", ".join(sorted(possible)) or "none"
    return f"{mistake}{'' if mistake.endswith('?') else ';'} possible: {names}"


def repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
