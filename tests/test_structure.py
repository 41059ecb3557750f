"""Who may import whom: one way through the house."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# A room may import from rooms of a lower line only.
FLOORS = [
    [
        "losses",
        "progress_bars",
        "blocks",
        "randomness",
        "hookspecs",
        "quotas",
        "decoding",
        "transports",
        "skips",
        "interruption",
        "statistics",
        "versions",
        "loader",
        "diagnosis",
        "doctor",
        "deletion",
        "files",
        "lock",
        "launching",
    ],
    ["installation", "machine", "peers"],
    ["reachability"],
    ["remote", "measures", "results", "charts", "failures"],
    ["cache", "findings", "sharing", "same_run"],
    ["curves", "noninferiority", "worst_off", "page"],
    ["api"],
    ["shards", "mistakes"],
    ["samples", "captions", "index"],
    ["readers"],
    ["yaml_text", "streams", "names", "registry", "fakes", "sections"],
    ["roster", "listing", "loss_checks"],
    ["pictures", "config", "indexing", "removal"],
    ["steps", "suppression"],
    ["preprocess", "testing", "text_towers", "weights", "preview"],
    ["zoo", "pixels", "packing"],
    ["fingerprints"],
    ["certificates", "comparison", "standings"],
    ["pieces"],
    ["spread"],
    ["zero"],
    ["strategies", "tracking"],
    ["saved"],
    ["checkpoint"],
    ["clip", "known_embeddings"],
    ["embed_shards"],
    ["batches", "encoder", "optim", "export"],
    ["flops", "capacity", "embedding"],
    ["watch", "rehearsal"],
    ["plan"],
    ["communication"],
    ["report"],
    ["runs"],
    ["evaluate"],
    ["train", "dry_run", "examination"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = sorted(path.stem for path in (REPOSITORY / "trainer").glob("*.py"))
PLUGINS = sorted((REPOSITORY / "plugins").rglob("*.py"))


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


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "__init__"])
def test_imports_in_the_trainer_run_one_way(room):
    assert room in FLOOR, f"say in FLOORS where {room} stands"
    modules = imported(REPOSITORY / "trainer" / f"{room}.py")
    rooms = {name.split(".")[1] for name in modules if name.startswith("trainer.")} & set(ROOMS)
    assert not {other for other in rooms if FLOOR[other] >= FLOOR[room]}


def test_the_trainer_names_plugins_only_as_strings():
    for room in ROOMS:
        tree = ast.parse((REPOSITORY / "trainer" / f"{room}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("plugins"), room
            if isinstance(node, ast.Import):
                assert not [one for one in node.names if one.name.startswith("plugins")], room


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_plugins_import_only_the_trainers_public_face(path):
    own = {"plugins.fictitious"} if "fictitious" in path.parts else set()
    for module in imported(path):
        assert not module.startswith("trainer.") or module.count(".") == 1, module
        if module.startswith("trainer."):
            assert not (REPOSITORY / "trainer" / f"{module.split('.')[1]}.py").exists(), module
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
