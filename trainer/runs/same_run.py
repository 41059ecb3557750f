"""Is the run in a folder the one that is asked for? Then it is gone on with."""

from __future__ import annotations

from typing import Any

from trainer.system.addresses import is_remote, unsigned

MAY_CHANGE = {"checkpoint", "margin", "memory", "profile", "timeout_seconds", "trackers"}
MAY_CHANGE_OF_DATA = {"workers", "patience_seconds", "cache", "index"}


def changes(its_own: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """The options by their paths, of those that a result follows from, that are not the same.

    its_own, asked: resolved configurations. Raises AttributeError and KeyError for what is none.
    """
    return differing(_what_counts(its_own), _what_counts(asked))


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """The dotted paths of what two configurations have not in common."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [path]
    prefix = f"{path}." if path else ""
    return [
        found
        for name in sorted(one.keys() | other.keys())
        for found in differing(one.get(name), other.get(name), f"{prefix}{name}")
    ]


def _what_counts(resolved: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration: what its result follows from. The rest may change between two starts."""
    counts = {name: one for name, one in resolved.items() if name not in MAY_CHANGE}
    data = {name: one for name, one in counts["data"].items() if name not in MAY_CHANGE_OF_DATA}
    data["embeddings"] = data.get("embeddings") is not None  # made or found, they are the same
    return _unsigned(counts | {"data": data})


def _unsigned(value: Any) -> Any:
    """Without the signatures of addresses, which end."""
    if isinstance(value, dict):
        return {name: _unsigned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_unsigned(one) for one in value]
    return unsigned(value) if isinstance(value, str) and is_remote(value) else value
