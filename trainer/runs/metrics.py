"""A run's metrics.jsonl: which of its rows stay when it goes on, and which failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.system.files import replace

METRICS = "metrics.jsonl"  # in the run's folder
FAILED = "failed"  # in a row
LOSSES = "bad_samples"  # in each row of losses, which are told before a step is saved


def cut_metrics(path: Path, step: int) -> None:
    """Rows of what came after a save go, which are taken again; so does a row that was cut off, or
    that a power loss left unreadable, with all after it."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["step"] < step or row["step"] == step and LOSSES in row:
            rows.append(line)
    replace(path, lambda aside: aside.write_bytes(b"".join(rows)))


def failures_in(path: Path) -> list[dict[str, Any]]:
    """Of all evaluations that a run's metrics.jsonl tells of: which, at which step, why."""
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [
        {"evaluation": name, "step": row["step"], "cause": why}
        for row in rows
        for name, why in row.get(FAILED, {}).items()
    ]
