"""Versions that do not go together, in environments that were really written."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from trainer.doctor.installation import installation, versions


def write_package(folder: Path, name: str, version: str, *requires: str, python=">=3.10") -> None:
    lines = [f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    (folder / f"{name}-{version}.dist-info").mkdir()
    text = "\n".join(["Metadata-Version: 2.1", *lines]) + "\n"
    (folder / f"{name}-{version}.dist-info/METADATA").write_text(text)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def found(package: str) -> list[tuple[str, str, str]]:
    return [(one.level, one.what, one.mend) for one in installation(package)]


def test_this_environment_is_well_and_its_versions_are_shown():
    ((level, what, mend),) = found("clip-unlearn")
    assert (level, mend) == ("ok", "")
    assert f"torch {versions()['torch']}" in what and "deepspeed" in what


def test_a_version_that_is_refused_is_named_with_its_mend(environment):
    write_package(environment, "asking", "1.0", "needed!=2.13.0,>=2.6")
    write_package(environment, "needed", "2.13.0")
    assert found("asking") == [
        (
            "fail",
            "needed is 2.13.0, asking wants needed!=2.13.0,>=2.6",
            "pip install 'needed!=2.13.0,>=2.6'",
        )
    ]


def test_the_same_of_what_a_requirement_wants_in_its_turn(environment):
    write_package(environment, "asking", "1.0", "vision", 'extra; extra == "test"')
    write_package(environment, "vision", "0.29.2", "needed==2.15.0")
    write_package(environment, "needed", "2.14.1")
    ((level, what, mend),) = found("asking")
    assert (level, what) == ("fail", "needed is 2.14.1, vision 0.29.2 wants needed==2.15.0")
    assert mend == "pip install 'needed==2.15.0', or another vision"


def test_a_missing_package_is_named_with_why_it_is_wanted(environment, monkeypatch):
    write_package(environment, "asking", "1.0", "transformers >=99")
    ((_, what, _),) = found("asking")
    assert "accelerate's DeepSpeed path asks for its version" in what
    write_package(environment, "poor", "1.0", "certainly-not-there")
    assert found("poor")[0][1].startswith("certainly-not-there is missing, poor wants")


def test_a_python_that_is_too_old_is_named(environment):
    write_package(environment, "future", "1.0", python=">=3.99")
    ((_, what, mend),) = found("future")
    assert what.endswith("future wants >=3.99") and "environment anew" in mend


def test_a_torchvision_of_another_build_is_found_by_its_import(environment, monkeypatch):
    (environment / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    )
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    ((_, what, mend),) = found("clip-unlearn")
    assert what == "torchvision cannot be imported: operator torchvision::nms does not exist"
    assert "together" in mend


def test_a_package_that_is_not_there_has_no_version_and_is_named(monkeypatch):
    found_name = Distribution.from_name.__func__

    def without_deepspeed(cls, name):
        if name == "deepspeed":
            raise PackageNotFoundError(name)
        return found_name(cls, name)

    monkeypatch.setattr(Distribution, "from_name", classmethod(without_deepspeed))
    assert versions()["deepspeed"] == "missing" and versions()["torch"] != "missing"
    assert any(
        what.startswith("deepspeed is missing, clip-unlearn wants")
        for _, what, _ in found("clip-unlearn")
    )


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError", "OSError"])
def test_the_doctor_tells_of_a_torchvision_that_it_cannot_import_itself(environment, error):
    (environment / "torchvision.py").write_text(f"raise {error}('operator nms does not exist')")
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "doctor"],
        cwd=environment, env=os.environ | {"PYTHONPATH": f"{environment}:{REPOSITORY}"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.startswith("fail  torchvision cannot be imported: operator nms does not")
    assert done.stdout.count("\n") == 1
