"""The commands for requests of deletion: certificates, and people taken out of rosters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # seconds to import
    from trainer.people.standings import Standing


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="Ed25519, PEM: who signs.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@click.option("--identity", help="A pseudonym: this person's alone.")
@click.option("--verify", type=click.Path(path_type=Path), help="A certificate to check.")
@click.option("--public-key", type=click.Path(path_type=Path), help="PEM: of who signed it.")
def certificate(
    run: Path | None,
    key: Path | None,
    into: Path | None,
    identity: str | None,
    verify: Path | None,
    public_key: Path | None,
) -> None:
    """Seal for each person whom RUN was to forget what was found of them; or check a seal."""
    issues, checks = (run, key, into), (verify, public_key)
    if None not in issues and checks == (None, None):
        from trainer.people.certificates import issue

        assert run and key and into
        click.echo(f"{issue(run, key, into, identity):,} certificates in {into}")
    elif None not in checks and issues == (None, None, None) and identity is None:
        from trainer.people import certificates

        assert verify and public_key
        found = certificates.verify(verify, public_key)
        model = found["model"]["weights_sha256"]["after"]
        click.echo(
            f"sealed as it is, of {found['identity']}, issued {found['issued_at']}, "
            f"for the weights whose sha256 is {model}"
        )
    else:
        raise click.UsageError(
            "either issue: RUN --key KEY --into FOLDER [--identity PSEUDONYM], "
            "or check: --verify FILE --public-key KEY"
        )


@click.group()
def roster() -> None:
    """Take people out of rosters, and see that they stay out."""


@roster.command("forget-me")
@click.argument("rosters", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--index",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of indexes and embeddings (`data.index`): theirs there go too.",
)
def forget_me(rosters: tuple[Path, ...], index: Path | None) -> None:
    """Take a person out of ROSTERS: rows, pictures, indexes, embeddings. The name is asked for, or
    read from the standard input: arguments are seen by others and kept by shells."""
    from trainer.people.suppression import forget_me as forget

    name = click.prompt("Name", err=True)
    is_found = False
    for path in rosters:
        removed = forget(path, name, index)
        if removed is None:
            continue
        is_found = True
        # At once: the next may be refused.
        click.echo(
            f"{removed.pseudonym} is out of {path}: {removed.pictures:,} pictures, "
            f"{removed.shards:,} shards without them, {removed.kept:,} indexes and embeddings"
        )
        if removed.left:
            click.echo(
                f"{removed.left:,} other files and folders are still in their folder: look at "
                "them and delete it"
            )
    if not is_found:
        raise ValueError(
            "nobody has that name or alias there, accents, case and punctuation aside; "
            "was the person taken out before?"
        )
    click.echo(
        "Not touched: copies, indexes and embeddings elsewhere, backups, and models that were "
        "trained before."
    )


@roster.command()
@click.argument("rosters", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="A run's folder: check its model.")
@click.pass_context
def check(context: click.Context, rosters: tuple[Path, ...], run: Path | None) -> None:
    """Is anyone in ROSTERS who was taken out, or a picture of theirs? Ends with code 1 if so.

    With --run: was that run to forget all who were taken out of ROSTERS, did its attack find
    none of them afterwards, and did it teach none?
    """
    if run is not None:
        _check_run(context, rosters, run)
        return
    from trainer.people.suppression import suppressed_in

    found = [(path, one) for path in rosters for one in suppressed_in(path)]
    for path, one in found:
        what = ["the name"] if one.has_name else []
        what += [f"{one.pictures:,} pictures"] if one.pictures else []
        click.echo(f"{path} person {one.place}, {one.pseudonym}: {' and '.join(what)} came back")
    if found:
        context.exit(1)
    click.echo("nobody who was taken out")


def _check_run(context: click.Context, rosters: tuple[Path, ...], run: Path) -> None:
    from trainer.people.standings import standings

    found = [(path, one) for path in rosters for one in standings(path, run)]
    for path, one in found:
        click.echo(f"{one.pseudonym}, once in {path}: {_told(one)} by {run}")
    if not found:
        click.echo("nobody was taken out")
    if any(one.is_taught or not one.was_to_be_forgotten or one.found_by for _, one in found):
        context.exit(1)


def _told(one: Standing) -> str:
    if not one.was_to_be_forgotten:
        told = "not asked to be forgotten"
    elif one.found_by is None:
        told = "asked to be forgotten, but not attacked"
    elif one.found_by:
        told = f"asked to be forgotten, but still found by {one.found_by} prompts of the attack,"
    else:
        told = "forgotten, as far as the attack finds,"
    return told + (" and taught or kept by name" if one.is_taught else "")
