"""Who may import whom: one way through the house."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# What stands in the trainer, files and folders, may import from what is on a lower line only.
FLOORS = [
    ["decoding", "hookspecs", "losses", "statistics", "system"],
    ["measures", "reports"],
    ["api"],
    ["registry", "testing"],
    ["configuration", "listing"],
    ["strategies"],
    ["models", "optim"],
    ["data"],
    ["embedding", "people"],
    ["planning"],
    ["runs"],
    ["doctor", "evaluate"],
    ["train"],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
TRAINER = REPOSITORY / "trainer"
MODULES = sorted(path for path in TRAINER.rglob("*.py") if path != TRAINER / "__init__.py")
PLUGINS = sorted((REPOSITORY / "plugins").rglob("*.py"))


def called(path: Path) -> str:
    """The module's name, from the trainer on."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {called(path): path for path in MODULES}


def imported(path: Path) -> set[str]:
    """Modules that are imported when the file is, not by its functions or for types alone."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=called)
def test_imports_in_the_trainer_run_one_way(path):
    own = called(path).split(".")[1]
    assert own in FLOOR, f"say in FLOORS where {own} stands"
    others = {name.split(".")[1] for name in imported(path) if name in NAMES} - {own}
    assert not {other for other in others if FLOOR[other] >= FLOOR[own]}


def test_so_do_those_in_each_of_its_folders():
    within = {
        name: {o for o in imported(path) if o in NAMES and o.split(".")[1] == name.split(".")[1]}
        for name, path in NAMES.items()
    }
    TopologicalSorter(within).prepare()  # raises CycleError


def test_the_trainer_names_plugins_only_as_strings():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("plugins"), path
            if isinstance(node, ast.Import):
                assert not [one for one in node.names if one.name.startswith("plugins")], path


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_plugins_import_only_the_trainers_public_face(path):
    own = {"plugins.fictitious"} if "fictitious" in path.parts else set()
    for module in imported(path):
        assert not module.startswith("trainer.") or module.count(".") == 1, module
        assert module not in NAMES, module
        if module.startswith("plugins"):
            assert any(module.startswith(name) for name in own | {"plugins.fictitious"} & own), (
                module
            )


def test_every_public_class_and_function_has_a_docstring_or_speaks_for_itself():
    """What a plugin author imports is explained."""
    import trainer

    for name in trainer.__all__:
        thing = getattr(trainer, name)
        if callable(thing) and getattr(thing, "__module__", "").startswith("trainer"):
            assert thing.__doc__, name
