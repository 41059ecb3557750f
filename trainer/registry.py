"""Find plugins, and refuse clashes, unknown hooks and wrong signatures."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import click
import pluggy

from trainer import hookspecs
from trainer.api import Evaluation, Objective

# Only strings: the built-ins take no shortcut that another package could not take.
BUILT_INS = (
    "plugins.preserve",
    "plugins.contrastive",
    "plugins.name_to_person",
    "plugins.face_to_neutral",
    "plugins.identity_inference",
    "plugins.zero_shot",
    "plugins.fictitious",
)


class PluginError(ValueError):
    """A plugin that cannot be used; the start stops."""


@dataclass(frozen=True)
class Registry:
    """What all plugins offer, by kind, and where each comes from."""

    manager: pluggy.PluginManager
    objectives: dict[str, type[Objective]]
    evaluations: dict[str, type[Evaluation]]
    sources: dict[type, str]

    def add_commands(self, cli: click.Group) -> None:
        self.manager.hook.trainer_commands(cli=cli)


def load_plugins(local: Sequence[Path | str] = (), built_ins: Sequence[str] = BUILT_INS) -> Registry:
    """Built-ins, installed packages, local files. Raises PluginError."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    modules = {f"built-in {name}": importlib.import_module(name) for name in built_ins}
    for point in entry_points(group=hookspecs.PROJECT):
        source = f"package {point.dist.name} {point.dist.version}"
        modules[source] = _imported(source, point.load)
    for path in map(Path, local):
        modules[str(path)] = _imported(str(path), lambda path=path: _import_file(path))
    for source, module in modules.items():
        _register(manager, source, module)
    sources: dict[type, str] = {}
    objectives = _collect(manager, "trainer_objectives", Objective, sources)
    evaluations = _collect(manager, "trainer_evaluations", Evaluation, sources)
    return Registry(manager, objectives, evaluations, sources)


def _imported(source: str, load) -> ModuleType:
    try:
        return load()
    except PluginError:
        raise
    except Exception as error:  # whatever a plugin does on import
        raise PluginError(f"plugin {source} fails on import: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise PluginError(f"plugin {path} is not there")
    # The folder stays on sys.path: a spawned worker must import the plugin again by name.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    module = importlib.import_module(path.stem)
    found = Path(module.__file__ or "").resolve()
    if found != path:
        raise PluginError(f"plugin {path} has the name of another module, {found}; rename the file")
    return module


def _register(manager: pluggy.PluginManager, source: str, module: ModuleType) -> None:
    """Every function named like a hook must be one, and marked, and of the right signature."""
    possible = [name for name in vars(hookspecs) if name.startswith("trainer_")]
    for name, value in vars(module).items():
        if not (name.startswith("trainer_") and inspect.isfunction(value)):
            continue
        if name not in possible:
            raise PluginError(f"plugin {source}: unknown hook {name}; possible: {', '.join(possible)}")
        if not hasattr(value, f"{hookspecs.PROJECT}_impl"):
            raise PluginError(f"plugin {source}: {name} lacks @hookimpl")
    try:
        manager.register(module, name=source)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"plugin {source}: {reason}; possible hooks: {', '.join(possible)}") from error


def _collect(manager: pluggy.PluginManager, hook: str, base: type, sources: dict[type, str]) -> dict:
    offered: dict[str, type] = {}
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        source = implementation.plugin_name
        for cls in implementation.function():
            if not (inspect.isclass(cls) and issubclass(cls, base)):
                raise PluginError(f"plugin {source}: {hook} gives {cls!r}, not a class of {base.__name__}")
            missing = [name for name in ("kind", "trains")[: 2 if base is Objective else 1] if not hasattr(cls, name)]
            if missing:
                raise PluginError(f"plugin {source}: {cls.__name__} has no {' and no '.join(missing)}")
            if cls.kind in offered:
                raise PluginError(
                    f"kind {cls.kind!r} is offered twice: by {_place(offered[cls.kind])} and by {_place(cls)}"
                )
            offered[cls.kind] = cls
            sources[cls] = source
    return offered


def _place(cls: type) -> str:
    return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
