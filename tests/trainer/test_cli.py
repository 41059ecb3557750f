from __future__ import annotations

import builtins
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.trainer.test_registry import OBJECTIVE, install, write_plugin
from trainer import cli as commands
from trainer.registry import load_plugins

REPOSITORY = Path(__file__).parents[2]
WRONG = """\
model: {name: ViT-B-32}
data: {shards: a.tar}
objectives: {keep: {kind: preserve, wieght: 1, batch_size: 8}}
optimizer: {lr: 1e-4}
steps: -5
"""
TWO_LINES = (
    "steps: found -5; must be greater than 0 or must be 'auto'\n"
    "objectives.keep.wieght: unknown option; did you mean 'weight'? "
    "possible: batch_size, distance, shards, towers, weight\n"
)
FAILING = """
    import builtins
    import click
    from trainer import hookimpl

    @click.command()
    @click.argument("error")
    def fail(error):
        raise vars(builtins)[error]("so it is")

    @click.command()
    @click.pass_context
    def leave(context):
        context.exit(3)

    @hookimpl
    def trainer_commands(cli):
        cli.add_command(fail)
        cli.add_command(leave)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(commands.cli, "commands", dict(commands.cli.commands))
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def call(monkeypatch, capsys):
    """`clip-unlearn ...` in this process: its exit code, its output, its messages."""

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip-unlearn", *arguments])
        with pytest.raises(SystemExit) as caught:
            commands.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return called


@pytest.fixture
def failing_commands(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "failing", mine_failing_commands=FAILING)
    yield
    sys.modules.pop("mine_failing_commands", None)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )


def test_mistakes_end_with_code_2_and_a_line_for_each_and_no_traceback():
    Path("wrong.yaml").write_text(WRONG)
    done = run("-m", "trainer", "train", "wrong.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", TWO_LINES)


def test_a_broken_installed_plugin_stops_the_start_and_is_named(tmp_path):
    install(tmp_path, "broken", mine_broken="import not_there")
    done = run("-m", "trainer", "--help", PYTHONPATH=f"{REPOSITORY}{os.pathsep}{tmp_path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "plugin package broken 1.2 (mine_broken) fails on import: "
        "ModuleNotFoundError: No module named 'not_there'\n"
    )


def test_a_checkout_that_is_not_installed_is_told_so(call, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(commands, "version", absent)
    code, _, told = call("plugins")
    assert code == 2 and told == (
        f"clip-unlearn runs from {REPOSITORY}, but is not installed in this Python: "
        f"pip install -e {REPOSITORY}\n"
    )


def test_the_heavy_libraries_are_not_imported_for_a_mistake_or_a_list():
    program = (
        "import sys, trainer.cli, trainer.registry\n"
        "trainer.cli.describe_plugins(trainer.registry.load_plugins())\n"
        "heavy = {'accelerate', 'deepspeed', 'open_clip', 'transformers', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run("-c", program).stdout == "[]\n"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_mistakes_are_told_by_the_first_process_alone(call, monkeypatch, command):
    Path("wrong.yaml").write_text(WRONG)
    monkeypatch.setenv("RANK", "0")
    assert call(command, "wrong.yaml") == (2, "", TWO_LINES)
    monkeypatch.setenv("RANK", "1")
    assert call(command, "wrong.yaml") == (2, "", "")


def test_overrides_reach_the_configuration(call):
    Path("wrong.yaml").write_text(WRONG)
    code, _, told = call("train", "wrong.yaml", "steps=7", "--dry-run")
    assert (code, told) == (2, TWO_LINES.partition("\n")[2])


def test_a_configuration_that_is_not_there_is_named(call):
    assert call("train", "absent.yaml") == (2, "", "absent.yaml: No such file or directory\n")


def test_help_lists_the_commands_of_plugins_too(call):
    code, shown, _ = call("--help")
    assert code == 0
    listed = {line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line}
    assert listed >= {"evaluate", "fictitious", "plugins", "train"}


def test_the_version_is_shown(call):
    code, shown, _ = call("--version")
    assert code == 0 and "version" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["trian"], "No such command 'trian'"),
        (["train", "a.yaml", "--fast"], "No such option"),
    ],
)
def test_a_wrong_call_tells_how_to_call(call, monkeypatch, arguments, told):
    code, _, message = call(*arguments)
    assert code == 2 and told in message and "Usage: clip-unlearn" in message
    monkeypatch.setenv("RANK", "1")
    assert call(*arguments) == (2, "", "")


@pytest.mark.parametrize(
    "error", ["ValueError", "FileNotFoundError", "FileExistsError", "PermissionError"]
)
def test_what_the_user_can_mend_is_told_without_a_traceback(call, failing_commands, error):
    assert call("fail", error) == (2, "", "so it is\n")


def test_a_mistakes_traceback_is_shown_on_request(call, failing_commands, monkeypatch):
    monkeypatch.setenv("CLIP_UNLEARN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="so it is"):
        call("fail", "ValueError")


def test_a_run_that_diverges_ends_with_code_1(call, failing_commands):
    assert call("fail", "FloatingPointError") == (1, "", "so it is\n")


@pytest.mark.parametrize("error", ["RuntimeError", "KeyError", "AssertionError", "OSError"])
def test_our_own_mistakes_are_told_with_where_they_came_up(
    call, failing_commands, monkeypatch, error
):
    code, _, told = call("fail", error)
    assert code == 1 and "Traceback (most recent call last)" in told
    assert 'mine_failing_commands.py", line ' in told and "in fail" in told
    last = told.rstrip().splitlines()[-1]
    if error == "KeyError":  # of what was looked up, be it a name
        assert "so it is" not in told and "CLIP_UNLEARN_TRACEBACK=1" in last
    else:
        assert last == f"{error}: so it is"
    monkeypatch.setenv("CLIP_UNLEARN_TRACEBACK", "1")
    with pytest.raises(vars(builtins)[error], match="so it is"):
        call("fail", error)


def test_a_disk_that_cannot_be_written_is_told_in_a_line(tmp_path):
    """As of a read-only one; here of a name that no disk takes."""
    (tmp_path / "0.tar").write_bytes(bytes(10240))
    folder = tmp_path / ("x" * 300)
    command = [sys.executable, "-m", "trainer", "index", str(tmp_path / "0.tar"), "--into", folder]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot go on: [Errno 36] File name too long" in done.stderr


def test_an_interruption_is_told_in_a_word(call, failing_commands):
    code, _, told = call("fail", "KeyboardInterrupt")
    assert code == 130 and told.strip() == "interrupted"


def test_a_plugins_command_chooses_its_exit_code(call, failing_commands):
    assert call("leave")[0] == 3


def test_every_kind_is_listed_with_its_source_and_options(call):
    code, shown, _ = call("plugins")
    assert code == 0
    registry = load_plugins()
    paragraphs = {text.split("\n")[0]: text for text in shown.split("\n\n")}
    assert set(paragraphs) == {*registry.objectives, *registry.evaluations}
    for kind, cls in [*registry.objectives.items(), *registry.evaluations.items()]:
        for option, field in cls.Options.model_fields.items():
            assert f"    {option}" in paragraphs[kind]
            assert (field.description or "").split(" ")[0] in paragraphs[kind]
    assert paragraphs["preserve"] == (
        "preserve\n"
        "  objective, trains image and text\n"
        "  from built-in plugins.preserve\n"
        "  The student's embedding of a clean caption and picture, pulled to the\n"
        "  teacher's.\n"
        "    weight: float = 1.0                 factor of this objective's loss\n"
        "    batch_size: int (required)          pairs a step, over all processes\n"
        "    shards: list[str | {shards, weight}] | null = null\n"
        "                                        its own samples, not data.shards\n"
        '    towers: list[text | image] = ["text", "image"]\n'
        "                                        which to preserve\n"
        '    distance: cosine | relative = "relative"\n'
        "                                        to the teacher, of lengths as well; or\n"
        "                                        cosine, the paper's"
    )


def test_the_list_fits_80_columns_and_has_no_colours_when_piped(call):
    shown = call("plugins")[1]
    assert max(map(len, shown.splitlines())) <= 80 and "\x1b" not in shown


def test_a_local_plugin_is_listed_with_all_its_options(call, tmp_path):
    options = """
        class Options(Objective.Options):
            shares: Shares = Shares()
            how: Literal["a", 2] = "a"
            words: list[str] = Field(["x", "y", "z"], description="many")
            maybe: dict[str, int] | None = None
            made: list[int] = Field(default_factory=lambda: [7])
    """
    text = OBJECTIVE.replace('kind = "mine"', 'kind = "mine"' + options)
    shares = """
    from typing import Literal, Optional
    from pydantic import Field
    from trainer import StrictModel

    class Shares(StrictModel):
        forget: float = Field(0.5, description="triggers")
    """
    path = write_plugin(tmp_path, shares + text)
    code, shown, _ = call("plugins", "--plugin", str(path))
    assert code == 0
    listed = next(text for text in shown.split("\n\n") if text.startswith("mine\n"))
    assert listed.rstrip("\n").splitlines()[1:] == [
        "  objective, trains text",
        f"  from {path}",
        "  Teaches nothing.",
        "    weight: float = 1.0                 factor of this objective's loss",
        "    batch_size: int (required)          pairs a step, over all processes",
        "    shards: list[str | {shards, weight}] | null = null",
        "                                        its own samples, not data.shards",
        "    shares.forget: float = 0.5          triggers",
        '    how: a | 2 = "a"',
        "    words: list[str] = (3 of them)      many",
        "    maybe: dict[str, int] | null = null",
        "    made: list[int] = [7]",
    ]


def test_a_local_plugin_that_is_wrong_is_named(call):
    code, shown, told = call("plugins", "--plugin", "absent.py")
    assert (code, shown) == (2, "")
    assert told.endswith("absent.py is not there; write the path of a .py file\n")


def test_a_dry_run_is_refused_the_folder_that_the_run_would_be(call):
    Path("right.yaml").write_text(WRONG.replace("wieght", "weight"))
    Path("private").mkdir()
    Path("private/requests.csv").touch()
    code, shown, told = call("train", "right.yaml", "steps=5", "output=private", "--dry-run")
    assert (code, shown) == (2, "")
    assert told == "output: private is not empty and no run's; name another folder\n"


@pytest.mark.parametrize("option", [("--devices", "8"), ("--device-memory", "80")])
def test_what_plans_a_dry_run_is_refused_without_one(call, option):
    code, _, told = call("train", "run.yaml", *option)
    assert code == 2
    assert "go with --dry-run" in told and "accelerate launch" in told
