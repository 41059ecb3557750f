"""Find plugins, and refuse clashes, unknown hooks and wrong signatures."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from os.path import abspath
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pluggy

from trainer import hookspecs
from trainer.api import Evaluation, Objective, Tower

# Only strings: the built-ins take no shortcut that another package could not take.
BUILT_INS = (
    "plugins.preserve",
    "plugins.contrastive",
    "plugins.name_to_person",
    "plugins.face_to_neutral",
    "plugins.identity_inference",
    "plugins.zero_shot",
    "plugins.retrieval",
    "plugins.similarity",
    "plugins.leakage",
    "plugins.text_inference",
    "plugins.face_probe",
    "plugins.fictitious",
    "plugins.pack",
)
HOME = Path(__file__).resolve().parents[1]
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("trainer_"))


class PluginError(ValueError):
    """A plugin that cannot be used; the start stops."""


@dataclass(frozen=True)
class Registry:
    """What all plugins offer, by kind, and where each comes from.

    sources: ("objective" or "evaluation", kind) -> `built-in plugins.preserve`,
    `package foo 1.2 (foo.plugin)` or `/path/mine.py`.
    """

    objectives: dict[str, type[Objective]]
    evaluations: dict[str, type[Evaluation]]
    sources: dict[tuple[str, str], str]
    manager: pluggy.PluginManager

    def add_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands; none may take the place of another's."""
        for hook in self.manager.hook.trainer_commands.get_hookimpls():
            before = dict(cli.commands)
            _call(hook, *(cli for _ in hook.argnames))  # a hook may do without the argument
            for name, command in before.items():
                if cli.commands.get(name) is not command:
                    raise PluginError(
                        f"command {name!r} is offered twice: "
                        f"by {_place(command.callback)} and by {_place(hook.function)}"
                    )


def load_plugins(
    local: Sequence[Path | str] = (), built_ins: Sequence[str] = BUILT_INS
) -> Registry:
    """Built-ins, installed packages, local files. Raises PluginError."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name in built_ins:
        _register(manager, f"built-in {name}", _import_built_in(name))
    for point in entry_points(group=hookspecs.PROJECT):
        assert point.dist is not None  # entry_points() says whose each is
        source = f"package {point.dist.name} {point.dist.version} ({point.value})"
        _register(manager, source, _import_entry_point(source, point))
    for path in dict.fromkeys(Path(abspath(one)) for one in local):
        _register(manager, str(path), _import_file(path))
    _refuse_commands_of_files(manager, {str(Path(abspath(one))) for one in local})
    objectives, objective_sources = _collect(manager, "trainer_objectives", Objective)
    evaluations, evaluation_sources = _collect(manager, "trainer_evaluations", Evaluation)
    return Registry(objectives, evaluations, objective_sources | evaluation_sources, manager)


def _refuse_commands_of_files(manager: pluggy.PluginManager, files: set[str]) -> None:
    """They would never be there: a configuration is read after its command was chosen."""
    for hook in manager.hook.trainer_commands.get_hookimpls():
        if hook.plugin_name in files:
            raise PluginError(
                f"{_place(hook.function)}: a file of `plugins:` cannot add commands; install it as "
                "a package with an entry point of the group trainer"
            )


def _import_built_in(name: str) -> ModuleType:
    """`python -m trainer` looks where it is started first: a `plugins` there would be imported."""
    package = importlib.import_module(name.partition(".")[0])
    found = _origin(name) if hasattr(package, "__path__") else None
    if found is None or HOME not in Path(found).resolve().parents:
        raise PluginError(
            f"{package.__file__} takes the place of clip-unlearn's own {package.__name__}; "
            "rename it, or start elsewhere"
        )
    return importlib.import_module(name)


def _import_entry_point(source: str, point: EntryPoint) -> ModuleType:
    module = _imported(source, point.load)
    if not inspect.ismodule(module):
        raise PluginError(
            f"plugin {source}: its entry point {point.name!r} is "
            f"{type(module).__name__}, not a module; name the module alone"
        )
    return module


def _import_file(path: Path) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        raise PluginError(f"plugin {path} is not there; write the path of a .py file")
    if not path.stem.isidentifier():
        raise PluginError(f"plugin {path}: {path.stem!r} is no name of a module; rename the file")
    # The folder stays on sys.path: a spawned worker must import the plugin again by name. At its
    # end, so that a file beside the plugin takes no installed module's place.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    # Asked before the import, which would run the other module.
    found = _origin(path.stem)
    if found is None or Path(found).resolve() != path.resolve():
        raise PluginError(
            f"plugin {path} has the name of another module, {found or 'a part of Python'}; "
            "rename the file"
        )
    return _imported(str(path), lambda: importlib.import_module(path.stem))


def _origin(name: str) -> str | None:
    """The file that `import name` gives; None for a module without one."""
    if name in sys.modules:
        return vars(sys.modules[name]).get("__file__")
    spec = find_spec(name)
    return spec.origin if spec is not None and spec.has_location else None


def _imported(source: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:  # whatever a plugin does on import
        raise PluginError(f"plugin {source} fails on import: {_one_line(error)}") from error


def _register(manager: pluggy.PluginManager, source: str, module: ModuleType) -> None:
    """Every function named or marked like a hook must be one, and of the right signature."""
    for name, value in list(vars(module).items()):
        mark = manager.parse_hookimpl_opts(module, name)
        if mark is None and not (name.startswith("trainer_") and inspect.isfunction(value)):
            continue
        hook = (mark and mark.get("specname")) or name
        if hook not in HOOKS:
            close = difflib.get_close_matches(hook, HOOKS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ";"
            raise PluginError(f"{_place(value)}: unknown hook {hook}{hint} {_possible()}")
        if mark is None:
            raise PluginError(f"{_place(value)}: {name} lacks its mark; write @hookimpl above it")
    if manager.is_registered(module):
        raise PluginError(
            f"plugin {source} is loaded already, as {manager.get_name(module)}; name it once"
        )
    try:
        manager.register(module, name=source)
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{module.__file__}: {_one_line(error)}; {_possible()}") from error


def _collect(
    manager: pluggy.PluginManager, name: str, base: type[Objective] | type[Evaluation]
) -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    """What a hook offers, by kind, and the source of each."""
    offered: dict[str, Any] = {}
    sources = {}
    for hook in vars(manager.hook)[name].get_hookimpls():
        classes = _call(hook)
        if not isinstance(classes, (list, tuple)):
            raise PluginError(f"{_place(hook.function)}: {name} gives {classes!r}; give a list")
        for cls in classes:
            if problem := _what_is_wrong(cls, base):
                raise PluginError(f"{_place(hook.function)}: {name} gives {problem}")
            if cls.kind in offered:
                raise PluginError(
                    f"kind {cls.kind!r} is offered twice: "
                    f"by {_place(offered[cls.kind])} and by {_place(cls)}"
                )
            offered[cls.kind] = cls
            sources[base.__name__.lower(), cls.kind] = hook.plugin_name
    return offered, sources


def _what_is_wrong(cls: Any, base: type[Objective] | type[Evaluation]) -> str | None:
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        return f"{cls!r}, which is no subclass of {base.__name__}"
    if not (hasattr(cls, "kind") and isinstance(cls.kind, str) and cls.kind):
        return f'{cls.__name__}, which has no kind; write kind = "..." in it'
    if not (inspect.isclass(cls.Options) and issubclass(cls.Options, base.Options)):
        return f"{cls.__name__}, whose Options are no subclass of {base.__name__}.Options"
    if "kind" in cls.Options.model_fields:
        return f"{cls.__name__}, whose Options have a field `kind`; a configuration's own word"
    if issubclass(cls, Objective):
        trains = cls.trains if hasattr(cls, "trains") else None
        towers = trains if isinstance(trains, frozenset) else ()
        if not (towers and all(isinstance(tower, Tower) for tower in towers)):
            return (
                f"{cls.__name__}, whose trains is {trains!r}; "
                "write trains = frozenset({Tower.TEXT}), {Tower.IMAGE} or both"
            )
    return None


def _call(hook: pluggy.HookImpl, *arguments: Any) -> Any:
    try:
        return hook.function(*arguments)
    except Exception as error:  # whatever a plugin does in a hook
        name = hook.function.__name__
        raise PluginError(f"{_place(hook.function)}: {name} fails: {_one_line(error)}") from error


def _place(thing: Any) -> str:
    """file:line of a class or a function."""
    try:
        thing = inspect.unwrap(thing)
        return f"{inspect.getsourcefile(thing)}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):  # made without a source
        return repr(thing)


def _possible() -> str:
    return f"possible hooks: {', '.join(HOOKS)}"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
