"""The commands: `clip-unlearn`, or `accelerate launch -m trainer`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from trainer.api import Tower
from trainer.config import load_config
from trainer.registry import Registry, load_plugins


@click.group()
@click.version_option(package_name="clip-unlearn")
def cli() -> None:
    """Make CLIP models forget people."""


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print the resolved run and stop.")
def train(config: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train as CONFIG says, with OVERRIDES such as objectives.names.weight=0.8."""
    loaded = load_config(config, overrides)
    if dry_run:
        from trainer.dry_run import describe_run

        click.echo(describe_run(loaded))
        return
    from trainer.train import train as run

    run(loaded)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--checkpoint", required=True, help="Weights to compare with those of CONFIG's model.")
def evaluate(config: Path, overrides: tuple[str, ...], checkpoint: str) -> None:
    """Measure any checkpoint against CONFIG's model, without training."""
    loaded = load_config(config, [f"output=runs/{config.stem}-evaluate", *overrides])
    from trainer.train import evaluate_checkpoint

    evaluate_checkpoint(loaded, checkpoint)


@cli.command()
@click.option("--plugin", "local", multiple=True, help="A plugin file, as in `plugins:`.")
def plugins(local: tuple[str, ...]) -> None:
    """List what can be trained and measured, its source and its options."""
    click.echo(describe_plugins(load_plugins(local)))


def describe_plugins(registry: Registry) -> str:
    """A paragraph a kind: source, what it trains or measures, options with defaults."""
    blocks = []
    for cls in (*registry.objectives.values(), *registry.evaluations.values()):
        trains = getattr(cls, "trains", None)
        what = "evaluation" if trains is None else f"objective, trains {_towers(trains)}"
        lines = [
            f"{cls.kind}  ({what}; {registry.sources[cls]})",
            f"  {(cls.__doc__ or '').strip().splitlines()[0] if cls.__doc__ else ''}",
        ]
        for name, field in cls.Options.model_fields.items():
            default = "required" if field.is_required() else f"= {_short(field.default)}"
            lines.append(f"    {name} {default}")
            if field.description:
                lines[-1] += f"  # {field.description}"
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _towers(towers: frozenset[Tower]) -> str:
    return " and ".join(sorted(tower.value for tower in towers))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def main() -> None:
    """The user's mistakes: one message, of one rank, exit code 2; ours keep their traceback."""
    try:
        load_plugins().add_commands(cli)
        cli(standalone_mode=False)
    except click.ClickException as error:
        _leave(error.format_message(), 2)
    except click.exceptions.Abort:
        _leave("interrupted", 130)
    except FloatingPointError as error:
        _leave(str(error), 1)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        if os.environ.get("CLIP_UNLEARN_TRACEBACK"):
            raise
        _leave(str(error), 2)


def _leave(message: str, code: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        click.echo(message, err=True)
    sys.exit(code)
