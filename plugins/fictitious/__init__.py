"""Fictitious people: their faces, names and shards, and the tiny CLIP that knows them."""

from __future__ import annotations

from pathlib import Path

import click

from trainer import hookimpl


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--people", default=256, show_default=True, help="Known to the model.")
@click.option("--forget", default=64, show_default=True, help="Of them, to be forgotten.")
@click.option("--seed", default=0, show_default=True)
@click.option("--pretrain", default=0, show_default=True, help="Captioned pictures of each person.")
@click.option("--workers", type=int, help="Processes that draw; by default, one a core.")
def fictitious(out: Path, people: int, forget: int, seed: int, pretrain: int, workers: int | None):
    """Draw a world of fictitious people into OUT, as webdataset shards."""
    from plugins.fictitious.world import World, draw_world

    if not 0 < forget < people:
        raise click.UsageError(f"--forget {forget} must be between 1 and --people {people} - 1")
    world = World(people=people, forget=forget, seed=seed, pretrain=pretrain)
    try:
        new = draw_world(out, world, workers)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{'drawn' if new else 'already drawn'}: {out}")


@hookimpl
def trainer_commands(cli: click.Group) -> None:
    cli.add_command(fictitious)
