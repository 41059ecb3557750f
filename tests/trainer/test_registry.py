from __future__ import annotations

import importlib
import multiprocessing
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import click
import pytest

from trainer.registry import PluginError, load_plugins

OBJECTIVE = """
    from trainer import Objective, Tower, hookimpl

    class Mine(Objective):
        '''Teaches nothing.'''
        kind = "mine"
        trains = frozenset({Tower.TEXT})

    @hookimpl
    def trainer_objectives():
        return [Mine]
"""
EVALUATION = """
    from trainer import Evaluation, hookimpl

    class Measure(Evaluation):
        kind = "mine"

    @hookimpl
    def trainer_evaluations():
        return [Measure]
"""


@pytest.fixture(autouse=True)
def _imports_are_left_as_they_were():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("mine_"):
            del sys.modules[name]


def write_plugin(folder: Path, text: str, name: str | None = None) -> Path:
    # A module is imported once a process: each test's plugin has a name of its own.
    path = folder / f"{name or f'mine_{uuid4().hex[:8]}'}.py"
    path.write_text(dedent(text))
    return path


def install(folder: Path, package: str, **modules: str) -> None:
    """A distribution in `folder`, with an entry point to each of its modules."""
    information = folder / f"{package}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    points = "".join(f"{name} = {name}\n" for name in modules)
    (information / "entry_points.txt").write_text(f"[trainer]\n{points}")
    for name, text in modules.items():
        write_plugin(folder, text, name)


def refusal(*plugins: Path) -> str:
    with pytest.raises(PluginError) as caught:
        load_plugins(plugins, built_ins=["plugins.preserve"])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_built_in_is_found_and_knows_its_source():
    registry = load_plugins()
    assert {"preserve", "contrastive", "name_to_person", "face_to_neutral"} <= set(
        registry.objectives
    )
    assert {"identity_inference", "zero_shot"} <= set(registry.evaluations)
    assert registry.sources["objective", "preserve"] == "built-in plugins.preserve"
    assert registry.sources["evaluation", "zero_shot"] == "built-in plugins.zero_shot"
    assert len(registry.sources) == len(registry.objectives) + len(registry.evaluations)


def test_an_objective_and_an_evaluation_of_one_kind_have_each_their_source(tmp_path):
    first, second = write_plugin(tmp_path, OBJECTIVE), write_plugin(tmp_path, EVALUATION)
    registry = load_plugins([first, second], built_ins=[])
    assert registry.sources == {
        ("objective", "mine"): str(first),
        ("evaluation", "mine"): str(second),
    }


def test_a_file_named_twice_is_loaded_once(tmp_path):
    path = write_plugin(tmp_path, OBJECTIVE)
    assert len(load_plugins([path, tmp_path / "." / path.name], built_ins=[]).objectives) == 1


def test_an_installed_package_is_found_by_its_entry_points(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "pack", mine_installed_a=OBJECTIVE, mine_installed_b=EVALUATION)
    registry = load_plugins()
    assert registry.sources["objective", "mine"] == "package pack 1.2 (mine_installed_a)"
    assert registry.sources["evaluation", "mine"] == "package pack 1.2 (mine_installed_b)"
    assert len(registry.objectives) > 1  # beside the built-ins


def test_a_spawned_worker_unpickles_a_local_objective(tmp_path):
    cls = load_plugins([write_plugin(tmp_path, OBJECTIVE)]).objectives["mine"]
    objective = cls(cls.Options(batch_size=3), seed=5)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(eval, ("one.seed + one.options.batch_size", {"one": objective})) == 8


def test_a_file_beside_a_plugin_takes_no_installed_modules_place(tmp_path):
    write_plugin(tmp_path, "raise SystemExit", name="wave")
    load_plugins([write_plugin(tmp_path, "import wave"), write_plugin(tmp_path, OBJECTIVE)])


@pytest.mark.parametrize("theirs", ["plugins/__init__.py", "plugins/preserve.py", "plugins.py"])
def test_what_takes_the_built_ins_place_is_named(tmp_path, theirs):
    """As `python -m trainer` does in a folder that has plugins of its own."""
    path = tmp_path / theirs
    path.parent.mkdir(exist_ok=True)
    package = path if theirs == "plugins.py" else path.with_name("__init__.py")
    package.touch()
    path.touch()
    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}]
        sys.meta_path = [one for one in sys.meta_path if "ditable" not in str(one)]
        sys.path.append({str(Path(__file__).parents[2])!r})  # as where it is installed whole
        from trainer.registry import load_plugins
        load_plugins()
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1].endswith(
        f"PluginError: {package} takes the place of clip-unlearn's own plugins; "
        "rename it, or start elsewhere"
    )


def test_two_classes_of_one_kind_are_refused_naming_both_places(tmp_path):
    first, second = write_plugin(tmp_path, OBJECTIVE), write_plugin(tmp_path, OBJECTIVE)
    assert refusal(first, second) == (
        f"kind 'mine' is offered twice: by {first}:4 and by {second}:4"
    )


def test_a_kind_of_a_built_in_is_refused(tmp_path):
    path = write_plugin(tmp_path, OBJECTIVE.replace('"mine"', '"preserve"'))
    assert refusal(path).startswith("kind 'preserve' is offered twice: by ")
    assert "plugins/preserve.py:" in refusal(path) and f"{path}:4" in refusal(path)


@pytest.mark.parametrize("mark", ["@hookimpl", ""])
def test_an_unknown_hook_is_refused_with_the_possible_ones(tmp_path, mark):
    path = write_plugin(
        tmp_path,
        f"""
        from trainer import hookimpl
        {mark}
        def trainer_objektives():
            return []
        """,
    )
    assert refusal(path) == (
        f"{path}:{3 if mark else 4}: unknown hook trainer_objektives; "
        "did you mean trainer_objectives? "
        "possible hooks: trainer_objectives, trainer_evaluations, trainer_commands"
    )


def test_a_marked_function_of_any_name_is_an_unknown_hook(tmp_path):
    path = write_plugin(tmp_path, OBJECTIVE.replace("def trainer_objectives", "def offer"))
    assert "unknown hook offer; possible hooks: trainer_objectives" in refusal(path)


def test_a_hook_without_its_mark_is_refused(tmp_path):
    path = write_plugin(tmp_path, OBJECTIVE.replace("@hookimpl", ""))
    assert refusal(path) == (
        f"{path}:10: trainer_objectives lacks its mark; write @hookimpl above it"
    )


def test_a_hook_of_another_signature_is_refused(tmp_path):
    path = write_plugin(tmp_path, OBJECTIVE.replace("objectives()", "objectives(config)"))
    message = refusal(path)
    assert message.startswith(f"{path}: PluginValidationError: ")
    assert "trainer_objectives(config)" in message
    assert message.endswith("hooks: trainer_objectives, trainer_evaluations, trainer_commands")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("return [Mine]", "return [3]", "trainer_objectives gives 3, which is no subclass of"),
        ("return [Mine]", "return [str]", "gives <class 'str'>, which is no subclass of Objective"),
        ("return [Mine]", "return Mine", "give a list"),
        ("return [Mine]", "return None", "trainer_objectives gives None; give a list"),
        ("return [Mine]", "return 1 / 0", "trainer_objectives fails: ZeroDivisionError: division"),
        ('kind = "mine"', "", 'gives Mine, which has no kind; write kind = "..." in it'),
        ('kind = "mine"', "kind = 3", "gives Mine, which has no kind"),
        ("trains = ", "other = ", "gives Mine, whose trains is None; write trains = frozenset("),
        ("{Tower.TEXT}", "{'text'}", "whose trains is frozenset({'text'}); write"),
        ("{Tower.TEXT}", "", "whose trains is frozenset(); write"),
        ('kind = "mine"', 'kind = "mine"; Options = dict', "Options are no subclass of Objective"),
        (
            'kind = "mine"',
            'kind = "mine"\n        class Options(Objective.Options):\n            kind: str',
            "gives Mine, whose Options have a field `kind`",
        ),
    ],
)
def test_what_is_no_whole_objective_is_refused_naming_the_place(tmp_path, old, new, problem):
    path = write_plugin(tmp_path, OBJECTIVE.replace(old, new))
    message = refusal(path)
    assert message.startswith(f"{path}:") and problem in message


def test_an_evaluation_offered_as_an_objective_is_refused(tmp_path):
    path = write_plugin(tmp_path, EVALUATION.replace("_evaluations", "_objectives"))
    assert "Measure'>, which is no subclass of Objective" in refusal(path)


def test_an_evaluation_without_kind_is_refused(tmp_path):
    path = write_plugin(tmp_path, EVALUATION.replace('kind = "mine"', "pass"))
    assert "trainer_evaluations gives Measure, which has no kind" in refusal(path)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("raise SystemExit('gone')", "SystemExit: gone"),
    ],
)
def test_a_file_that_fails_on_import_is_named_with_the_cause_in_one_line(tmp_path, text, cause):
    path = write_plugin(tmp_path, text)
    assert refusal(path).startswith(f"plugin {path} fails on import: {cause}")


@pytest.mark.parametrize("name", ["json", "time", "pytest", "wave", "__main__"])
def test_a_file_of_another_modules_name_is_refused_naming_both(tmp_path, name):
    path = write_plugin(tmp_path, "raise AssertionError('imported')", name)
    message = refusal(path)
    assert message.startswith(f"plugin {path} has the name of another module, ")
    assert message.endswith("; rename the file")
    if name == "json":
        assert str(Path("json") / "__init__.py") in message


def test_two_files_of_one_name_are_refused_naming_both(tmp_path):
    (tmp_path / "other").mkdir()
    first = write_plugin(tmp_path, OBJECTIVE)
    second = write_plugin(tmp_path / "other", OBJECTIVE, first.stem)
    message = refusal(first, second)
    assert str(first) in message and str(second) in message


@pytest.mark.parametrize("name", ["absent.py", "", "text.txt"])
def test_what_is_no_python_file_is_refused(tmp_path, name):
    (tmp_path / "text.txt").touch()
    path = tmp_path / name
    assert refusal(path) == f"plugin {path} is not there; write the path of a .py file"


def test_a_file_whose_name_is_no_modules_is_refused(tmp_path):
    path = write_plugin(tmp_path, OBJECTIVE, "my-plugin")
    assert refusal(path) == (f"plugin {path}: 'my-plugin' is no name of a module; rename the file")


def test_an_installed_package_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "pack", mine_failing="import not_there")
    assert refusal() == (
        "plugin package pack 1.2 (mine_failing) fails on import: "
        "ModuleNotFoundError: No module named 'not_there'"
    )


def test_an_entry_point_that_is_no_module_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "pack", mine_function="def offer(): pass")
    points = tmp_path / "pack-1.2.dist-info" / "entry_points.txt"
    points.write_text("[trainer]\none = mine_function:offer\n")
    assert refusal() == (
        "plugin package pack 1.2 (mine_function:offer): its entry point 'one' is function, "
        "not a module; name the module alone"
    )


def test_an_installed_plugin_named_as_a_file_too_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "pack", mine_both=OBJECTIVE)
    path = tmp_path / "mine_both.py"
    assert refusal(path) == (
        f"plugin {path} is loaded already, as package pack 1.2 (mine_both); name it once"
    )


COMMAND = """
    import click
    from trainer import hookimpl

    @click.command()
    def hello():
        click.echo("hello")

    @hookimpl
    def trainer_commands(cli):
        cli.add_command(hello)
"""


def commands_of(folder: Path, text: str) -> click.Group:
    """With those of a package that is installed in the folder."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    install(folder, "pack", mine_commands=text)

    @click.group()
    def cli():
        pass

    @cli.command()
    def train():
        pass

    load_plugins(built_ins=["plugins.fictitious"]).add_commands(cli)
    return cli


def test_plugins_add_commands(tmp_path):
    assert set(commands_of(tmp_path, COMMAND).commands) == {
        "train",
        "fictitious",
        "hello",
    }


def test_a_commands_hook_may_leave_its_argument_out(tmp_path):
    text = "from trainer import hookimpl\n@hookimpl\ndef trainer_commands(): pass\n"
    assert "hello" not in commands_of(tmp_path, text).commands


def test_a_command_in_the_place_of_another_is_refused_naming_both(tmp_path):
    text = COMMAND.replace("def hello", "def train").replace("hello", "train")
    with pytest.raises(PluginError, match=r"command 'train' is offered twice: by ") as caught:
        commands_of(tmp_path, text)
    assert f"{__file__}:" in str(caught.value)
    assert f"and by {tmp_path / 'mine_commands.py'}:9" in str(caught.value)


def test_a_file_that_would_add_commands_is_refused(tmp_path):
    path = write_plugin(tmp_path, COMMAND)
    assert refusal(path) == (
        f"{path}:9: a file of `plugins:` cannot add commands; install it as a package with an "
        "entry point of the group trainer"
    )


def test_a_commands_hook_that_fails_is_named(tmp_path):
    text = COMMAND.replace("cli.add_command(hello)", "cli.nothing")
    with pytest.raises(PluginError, match=r"trainer_commands fails: AttributeError: ") as caught:
        commands_of(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'mine_commands.py'}:9: ")
