"""What can be trained and measured, with every option, as `clip-unlearn plugins` prints it."""

from __future__ import annotations

import json
from enum import Enum
from textwrap import wrap
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from trainer.api import Evaluation, Objective, StrictModel
from trainer.registry import Registry

WIDTH, HEAD_WIDTH = 80, 40  # of the list, and of its left column


def describe_plugins(registry: Registry) -> str:
    """A paragraph a kind: source, what it trains or measures, its options."""
    paragraphs = []
    for kind, objective in registry.objectives.items():
        towers = " and ".join(sorted(tower.value for tower in objective.trains))
        source = registry.sources["objective", kind]
        paragraphs.append(_paragraph(objective, f"objective, trains {towers}", source))
    for kind, evaluation in registry.evaluations.items():
        source = registry.sources["evaluation", kind]
        paragraphs.append(_paragraph(evaluation, "evaluation", source))
    return "\n\n".join(paragraphs)


def _paragraph(cls: type[Objective] | type[Evaluation], role: str, source: str) -> str:
    # Paths stay whole, however long: they are to be copied.
    lines = [cls.kind, f"  {role}", f"  from {source}"]
    if cls.__doc__:
        lines += wrap(
            cls.__doc__.strip().splitlines()[0],
            WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
        )
    return "\n".join([*lines, *_options(cls.Options)])


def _options(model: type[StrictModel], above: str = "") -> list[str]:
    """`name: type = default` and its description beside it, or below where it is too long."""
    lines = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, StrictModel):
            lines += _options(field.annotation, f"{above}{name}.")
            continue
        required = field.is_required()
        default = "" if required else f" = {_default(field.get_default(call_default_factory=True))}"
        head = f"    {above}{name}: {_type_name(field.annotation)}{default}"
        head += " (required)" if required else ""
        column = " " * HEAD_WIDTH
        text = wrap(field.description or "", WIDTH, initial_indent=column, subsequent_indent=column)
        if text and len(head) < HEAD_WIDTH:
            text[0] = head.ljust(HEAD_WIDTH) + text[0].strip()
            lines += text
        else:
            lines += [*wrap(head, WIDTH, initial_indent="", subsequent_indent=" " * 8), *text]
    return lines


def _type_name(annotation: Any) -> str:
    """As one would say it in a configuration: `str or null`, `text | image`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type_name(arguments[0])
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, arguments))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    if annotation is type(None):
        return "null"
    names = [_type_name(one) for one in arguments]
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(names)
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return f"{name.partition('[')[0]}[{', '.join(names)}]" if names else name


def _default(value: Any) -> str:
    if isinstance(value, list) and len(value) > 2:
        return f"({len(value)} of them)"
    return json.dumps(value, default=str, ensure_ascii=False)
