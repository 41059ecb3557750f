"""A world of people who do not exist, drawn for the tiny CLIP that knows and forgets them.

`clip-unlearn fictitious OUT` writes their pictures, names and rosters; `--pretrain` also what the
CLIP learns them from. Which person, picture or name comes of which seed is `world.py`'s to say.
"""

from __future__ import annotations

from pathlib import Path

import click

from trainer import hookimpl


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--people", default=256, show_default=True, help="Known to the model.")
@click.option("--forget", type=int, show_default="a quarter", help="Of them, to be forgotten.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--pretrain",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Captioned pictures of each known person.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that draw; by default, one a core."
)
def fictitious(
    out: Path, people: int, forget: int | None, seed: int, pretrain: int, workers: int | None
) -> None:
    """Draw a world of fictitious people into OUT, as webdataset shards."""
    # Here, not above: every command loads this plugin.
    from plugins.fictitious.shards import draw_world
    from plugins.fictitious.world import World

    forget = people // 4 if forget is None else forget
    try:
        # Whoever is to be forgotten is answered as a stranger of their own; by all the others the
        # image tower learns whom to keep, and eight for each do that better than two.
        strangers = max(World.strangers, 8 * forget)
        # What thousands cost is asked for to half a point: 1,200 pictures differ by that by chance.
        labelled, tested = max(World.labelled, 4 * forget), max(World.tested, 12 * forget)
        world = World(
            people=people,
            forget=forget,
            strangers=strangers,
            labelled=labelled,
            tested=tested,
            seed=seed,
            pretrain=pretrain,
        )
        is_new = draw_world(out, world, workers)
    except (FileExistsError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{'drawn' if is_new else 'already drawn'}: {out}")


@hookimpl
def trainer_commands(cli: click.Group) -> None:
    cli.add_command(fictitious)
