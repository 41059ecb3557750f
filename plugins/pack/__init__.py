"""Turn what people have into shards and rosters: a folder of pictures a person, COCO's captions.

`clip-unlearn pack people FOLDER OUT` and `clip-unlearn pack coco CAPTIONS.json PICTURES OUT`.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from trainer import hookimpl

PATH = click.Path(path_type=Path)


@click.group()
def pack() -> None:
    """Turn folders of pictures into shards and rosters."""


@pack.command("people")
@click.argument("folder", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--shard-size", type=click.IntRange(min=1), default=1000, show_default=True, help="Pictures."
)
@click.option(
    "--attack",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Pictures of each person that are held out for the attack.",
)
@click.option(
    "--min-pictures",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Who has fewer, beside those held out, is left out.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Draws what is held out.",
)
def pack_folders(
    folder: Path, out: Path, shard_size: int, attack: int, min_pictures: int, seed: int
) -> None:
    """Pack FOLDER, a folder of pictures for each person, into shards and a roster in OUT.

    A person's name is the name of their folder, underscores read as spaces. FaceScrub's
    actors/faces and actresses/faces are found by themselves. Names go into the rosters alone.
    """
    # Here, not above: every command loads this plugin.
    from .people import pack_people
    from .shards import told

    packed = pack_people(folder, out, shard_size, attack, min_pictures, seed)
    click.echo(
        f"{out}: {_counted(packed.people, 'person', 'people')}, "
        f"{_counted(packed.pictures, 'picture')} in {_counted(packed.shards, 'shard')}"
    )
    if attack:
        shards = _counted(packed.attack_shards, "shard")
        click.echo(f"held out: {_counted(packed.held_out, 'picture')} in {shards}")
    if packed.left_out:
        beside = f" beside the {attack} held out" if attack else ""
        least = _counted(min_pictures, "usable picture")
        click.echo(f"left out: people without {least}{beside} ({packed.left_out})")
    click.echo(told(packed.skipped))
    roster, attack_roster = _quoted(out / "roster.csv"), _quoted(out / "attack_roster.csv")
    click.echo(
        "To forget some of them only, remove the others' rows in a copy of the roster beside it.\n"
        "In the configuration:\n"
        "objectives:\n"
        f"  names: {{kind: name_to_person, roster: {roster}, batch_size: 320}}\n"
        f"  faces: {{kind: face_to_neutral, roster: {roster}, strangers: [strangers.tar], "
        "batch_size: 320}  # twice as many people as in the roster, or more"
    )
    if attack:
        click.echo(
            "evaluations:\n"
            f"  attack: {{kind: identity_inference, groups: {{forget: {attack_roster}}}, "
            f"pictures: {attack}, distractors: names.txt}}  # other people's names, one a line"
        )


@pack.command("coco")
@click.argument("captions", metavar="CAPTIONS.json", type=PATH)
@click.argument("pictures", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--shard-size", type=click.IntRange(min=1), default=10_000, show_default=True, help="Samples."
)
@click.option(
    "--captions",
    "which",
    type=click.Choice(["first", "all", "each"]),
    default="first",
    show_default=True,
    help="Of a picture: its first, all of them a line each, or a sample for each.",
)
def pack_captions(captions: Path, pictures: Path, out: Path, shard_size: int, which: str) -> None:
    """Pack COCO's captions and the folder PICTURES into shards in OUT, as img2dataset writes them.

    CAPTIONS.json has `images` (id, file_name) and `annotations` (image_id, caption).
    """
    from .coco import pack_coco
    from .shards import told

    packed = pack_coco(captions, pictures, out, shard_size, which)
    click.echo(
        f"{out}: {_counted(packed.samples, 'sample')} of {_counted(packed.pictures, 'picture')} "
        f"in {_counted(packed.shards, 'shard')}"
    )
    click.echo(told(packed.skipped))
    last = packed.shards - 1
    pattern = f"{{00000..{last:05d}}}.tar" if last else "00000.tar"
    click.echo(f"In the configuration:\ndata: {{shards: {_quoted(out / pattern)}}}")


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def _quoted(path: Path) -> str:
    """As YAML takes it, whatever the path has in it."""
    return json.dumps(str(path), ensure_ascii=False)


@hookimpl
def trainer_commands(cli: click.Group) -> None:
    cli.add_command(pack)
