"""What README prints is run here, exactly as it stands there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from textwrap import dedent

import click
import pytest
import yaml

from tests.conftest import REPOSITORY
from trainer.cli import cli
from trainer.configuration.config import load_config, validate
from trainer.registry import load_plugins
from trainer.testing import check_objective
from trainer.train import train


def readme() -> str:
    return (REPOSITORY / "README.md").read_text(encoding="utf-8")


def block(language: str, start: str) -> str:
    """The one code block of this language that starts so."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", readme(), re.DOTALL | re.MULTILINE)
    (found,) = [text for _, text in blocks if dedent(text).startswith(start)]
    return dedent(found)


@pytest.fixture
def in_world(small_world, tmp_path, monkeypatch):
    """In a folder of one's own, with the small world's rosters as a user would keep them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    world = small_world / "runs/world"
    (tmp_path / "attack").symlink_to(world / "attack")
    (tmp_path / "private").mkdir()
    for name, source in {
        "requests.csv": "rosters/attack_forget.csv",
        "others.csv": "rosters/attack_unseen.csv",
        "names.txt": "names/distractors.txt",
    }.items():
        (tmp_path / "private" / name).write_text((world / source).read_text())
    (tmp_path / "plugins").symlink_to(REPOSITORY / "plugins")
    return tmp_path, world


def test_the_configuration_is_valid(in_world):
    config = validate(yaml.safe_load(block("yaml", "model:")), in_world[0], "my")
    assert config.objectives["names"].num_identities == 2
    assert str(config.output) == "runs/my"


def test_the_plugin_keeps_the_contract_and_trains(in_world):
    folder, world = in_world
    text = block("python", '"""Forget e-mail')
    assert len([line for line in text.splitlines() if line.strip()]) <= 25
    (folder / "emails.py").write_text(text)
    (folder / "addresses.txt").write_text("joe@example.org\njane@example.org\n")
    (folder / "run.yaml").write_text(
        json.dumps(
            {
                "model": {"name": "local-dir:plugins/fictitious/clip"},
                "data": {"shards": f"{world}/clean/*.tar", "workers": 1, "lanes": 4},
                "plugins": ["./emails.py"],
                "objectives": {
                    "emails": {
                        "kind": "email_to_nothing",
                        "addresses": "addresses.txt",
                        "batch_size": 8,
                    }
                },
                "optimizer": {"lr": 3e-4},
                "steps": 30,
                "log_every": 5,
            }
        )
    )
    config = load_config("run.yaml")
    train(config)
    rows = [json.loads(line) for line in (config.output / "metrics.jsonl").open()]
    assert rows[-1]["emails/forget"] < rows[0]["emails/forget"]
    cls = type(config.objectives["emails"])
    check_objective(cls, {"addresses": "addresses.txt", "batch_size": 4})
    assert importlib.import_module("emails").__file__ == str(folder / "emails.py")
    del sys.modules["emails"]


def commands() -> click.Group:
    """Those of the program and of its plugins, which are added to a copy: that can be done once."""
    found = click.Group(commands=dict(cli.commands))
    load_plugins().add_commands(found)
    return found


def options_of(command: click.Command) -> set[str]:
    """Its own, and those of the commands below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return {name for one in command.params for name in one.opts}.union(*map(options_of, below))


def test_every_clip_unlearn_command_that_is_printed_is_there_with_its_options():
    in_blocks = re.findall(r"^ +clip-unlearn (.+)$", readme(), re.MULTILINE)
    in_text = re.findall(r"`clip-unlearn ([^`]+)`", readme())
    assert len(in_blocks) > 10 and len(in_text) > 2
    for printed in (*in_blocks, *in_text):
        command, words = commands(), printed.split()
        while isinstance(command, click.Group) and words:
            name = words.pop(0)
            assert name in command.commands, printed
            command = command.commands[name]
        assert set(re.findall(r"--[a-z][\w-]*", printed)) <= options_of(command), printed


def test_every_option_that_is_printed_is_one_of_some_command():
    """Those of accelerate have underscores, which ours have not."""
    printed = {one for one in re.findall(r"(?<!-)--[a-z][\w-]*", readme()) if "_" not in one}
    assert len(printed) > 10
    assert printed <= options_of(commands())


def test_every_command_that_is_printed_is_there():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^ +make (\S+)", readme(), re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for name in re.findall(r"`(configs/\S+?\.yaml|launch/\S+?\.yaml|[\w/]+\.py)`", readme()):
        assert (REPOSITORY / name).is_file(), name
