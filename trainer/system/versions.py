"""Which code this is."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> dict[str, str | None]:
    """The installed version, and the commit where it runs from a checkout; `+` with changes."""
    return {"version": version("clip-unlearn"), "commit": _commit(Path(__file__).parents[2])}


def _commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}+" if _git(folder, "status", "--porcelain", "-uno") else head
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our folder
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(
        ["git", "-C", str(folder), *arguments], text=True, stderr=subprocess.DEVNULL
    ).strip()
