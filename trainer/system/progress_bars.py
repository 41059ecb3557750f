"""How far something is, at what rate, how long it will take: a bar, or lines where it is a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 10  # between two lines


class Lines:
    """What tqdm writes to: each refresh of a bar a line of stderr, since the log of a job or a pod
    has no carriage returns."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm, with its own options."""
    if not sys.stderr.isatty():
        options |= {"file": Lines(), "mininterval": SECONDS, "maxinterval": SECONDS}
    return tqdm(items, **options)
