"""`clip-unlearn doctor`; what it looks at stands in examination.py beside it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option(
    "--patience",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for the other processes.",
)
@click.pass_context
def doctor(
    context: click.Context, config: Path | None, overrides: tuple[str, ...], patience: float
) -> None:
    """Look at this machine, or at all hosts of a launch, and at what CONFIG's run needs there: a
    line for each finding. Ends with code 1 if something would stop a run."""
    try:
        from trainer.doctor.examination import examine, leave
    except (ImportError, RuntimeError, OSError):
        from trainer.doctor.diagnosis import Report, lines_of
        from trainer.doctor.installation import installation

        wrong = tuple(one for one in installation() if one.level == "fail")
        if not wrong:
            raise
        for line in lines_of([Report("", wrong)]):
            click.echo(line)
        context.exit(1)

    code = examine(config, overrides, patience)
    leave(code)
    context.exit(code)
