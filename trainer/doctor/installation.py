"""Whether what is installed goes together: what we ask for, and what that asks for in its turn."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer.doctor.diagnosis import Finding, fail, ok

OURS = "clip-unlearn"
SHOWN = ("torch", "torchvision", "accelerate", "deepspeed", "open_clip_torch")
# For what a version number does not tell by itself.
REASONS = {
    "torch": "2.13.0 is built without CUDA, and its torchvision fails to import",
    "transformers": "accelerate's DeepSpeed path asks for its version",
}


def installation(package: str = OURS) -> Iterator[Finding]:
    """package: whose requirements are to be met."""
    wrong = [*_python(package), *_packages(package), *_operators()]
    yield from wrong
    if not wrong:
        shown = ", ".join(f"{name} {_version(name)}" for name in SHOWN)
        yield ok(f"Python {platform.python_version()}, {shown}")


def versions() -> dict[str, str]:
    """What has to be the same on all hosts."""
    installed = {name: _version(name) for name in (OURS, *SHOWN)}
    return {"Python": ".".join(platform.python_version_tuple()[:2])} | installed


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _python(package: str) -> Iterator[Finding]:
    wanted = distribution(package).metadata["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        yield fail(
            f"Python is {platform.python_version()}, {package} wants {wanted}",
            "make the environment anew with such a Python",
        )


def _packages(package: str) -> Iterator[Finding]:
    for ours in _required_by(package):
        if found := _unmet(ours):
            reason = f" ({REASONS[ours.name]})" if ours.name in REASONS else ""
            yield fail(f"{found}, {package} wants {ours}{reason}", f"pip install '{ours}'")
            continue
        for theirs in _required_by(ours.name):
            if found := _unmet(theirs):
                yield fail(
                    f"{found}, {ours.name} {version(ours.name)} wants {theirs}",
                    f"pip install '{theirs}', or another {ours.name}",
                )


def _required_by(package: str) -> Iterator[Requirement]:
    """Extras left out."""
    for line in distribution(package).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _unmet(wanted: Requirement) -> str | None:
    """What is there instead."""
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(found, prereleases=True):
        return None
    return f"{wanted.name} is {found}"


def _operators() -> Iterator[Finding]:
    """A torchvision of another build fails here alone: its version may be the right one."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        yield fail(
            f"torchvision cannot be imported: {str(error).splitlines()[0]}",
            "install torch and torchvision together, from one index: both for CUDA or both not",
        )
