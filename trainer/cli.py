"""The commands: `clip-unlearn`, or `accelerate launch -m trainer`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import click

from trainer.configuration.config import load_config
from trainer.doctor.command import doctor
from trainer.listing import describe_plugins
from trainer.people.deletion import certificate, roster
from trainer.registry import load_plugins
from trainer.system.failures import TRACEBACK, is_meant, is_of_the_others, traceback_of
from trainer.system.files import (
    MORE_SHARED_MEMORY,
    NotWritten,
    is_full,
    is_shared_memory_full,
)

# What the user can mend: a message is enough. Anything else is our mistake, and it is told where it
# came up.
USER_MISTAKES = (
    ValueError,  # ConfigError, PluginError, and what a model or a shard is refused with
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


@click.group()
@click.version_option(package_name="clip-unlearn")
def cli() -> None:
    """Make CLIP models forget people."""


for command in (certificate, doctor, roster):
    cli.add_command(command)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print the resolved run and stop.")
@click.option(
    "--launch",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Of a dry run: as if it were launched with this file of launch/.",
)
@click.option("--devices", type=click.IntRange(min=1), help="Of a dry run: on so many.")
@click.option(
    "--device-memory", type=click.FloatRange(min=0), help="Of a dry run: of each GPU, in GB."
)
def train(
    config: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    launch: Path | None,
    devices: int | None,
    device_memory: float | None,
) -> None:
    """Train as CONFIG says, with OVERRIDES such as objectives.names.weight=0.8."""
    if not dry_run and (launch, devices, device_memory) != (None, None, None):
        raise click.UsageError(
            "--launch, --devices and --device-memory go with --dry-run; a run is launched by "
            "accelerate launch --config_file launch/FILE.yaml -m trainer train"
        )
    loaded = load_config(config, overrides)
    # Here, not above: accelerate and open_clip take seconds, and a mistake should not.
    if dry_run:
        from trainer.planning.dry_run import describe_run, planned
        from trainer.runs.claim import Claim

        if _is_first_process():
            Claim(loaded, trains=True, say=click.echo).looked_at()
            click.echo(describe_run(loaded, *planned(launch, devices, device_memory)))
    else:
        from trainer import train as training

        training.train(loaded)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option(
    "--checkpoint",
    help="Weights, an exported folder or a run's checkpoints/step-N, beside CONFIG's own model.",
)
def evaluate(config: Path, overrides: tuple[str, ...], checkpoint: str | None) -> None:
    """Measure any checkpoint against CONFIG's model, without training."""
    loaded = load_config(config, [f"output=runs/{config.stem}-evaluate", *overrides])
    from trainer.evaluate import evaluate_checkpoint

    evaluate_checkpoint(loaded, checkpoint)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--steps", default=10, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--position",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file to go on from if it is there, and to note in how far it came.",
)
def stream(config: Path, overrides: tuple[str, ...], steps: int, position: Path | None) -> None:
    """Print what a run will see, without a model: for each step and objective a JSON line with
    the keys of its samples, and pseudonyms for the people of its triggers."""
    loaded = load_config(config, overrides)
    from trainer.data.preview import preview
    from trainer.data.skips import Skips

    skips = Skips()
    for line in preview(loaded, steps, position, skips):
        click.echo(line)
        sys.stdout.flush()  # before the step is noted as done
    for shard, reasons in skips.worst_shards().items():
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        click.echo(f"skipped in {shard}: {counts}", err=True)


@cli.command()
@click.argument("shards", nargs=-1, required=True)
@click.option("--into", type=click.Path(file_okay=False), help="Folder; else beside each shard.")
@click.option("--workers", default=os.cpu_count(), show_default=True, type=click.IntRange(min=1))
def index(shards: tuple[str, ...], into: str | None, workers: int) -> None:
    """Find once what is in SHARDS (paths, braces, globs, URLs), so that no run has to."""
    from trainer.data.indexing import index_shards

    click.echo(index_shards(shards, into, workers))


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the page goes; else RUN/report.html, of several runs comparison.html here.",
)
@click.option("--people", is_flag=True, help="Show pseudonyms of kept people who lost most.")
def report(runs: tuple[Path, ...], output: Path | None, people: bool) -> None:
    """Write the page of one of RUNS, the folders of finished runs, or compare several."""
    from trainer.reports.comparison import write_comparison
    from trainer.reports.report import write_report

    if len(runs) == 1:
        click.echo(write_report(runs[0], output, people))
    elif people:
        raise click.UsageError("--people goes with one run; a comparison has no person in it")
    else:
        click.echo(write_comparison(runs, output or Path("comparison.html")))


@cli.command()
@click.option("--plugin", "local", multiple=True, help="A plugin file, as in `plugins:`.")
def plugins(local: tuple[str, ...]) -> None:
    """List what can be trained and measured, its source and its options."""
    click.echo(describe_plugins(load_plugins(local)))


def main() -> None:
    """The user's mistakes: one message, of one rank, exit code 2; ours are told with where they
    came up, but no words that may quote a name."""
    try:
        _check_installed()
        load_plugins().add_commands(cli)
        code = cli(prog_name="clip-unlearn", standalone_mode=False)
    except click.ClickException as error:
        if _is_first_process():
            error.show()
        sys.exit(2)
    except click.exceptions.Abort:
        _leave("interrupted", 130)
    except (FloatingPointError, NotWritten) as error:  # the run diverged; it cannot save
        _leave(str(error), 1)
    except USER_MISTAKES as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, ValueError) and not is_meant(error):  # Python's own, of our mistake
            _leave(traceback_of(error), 1, is_told=True)
        _leave(str(error), 2, is_told=_is_first_to_tell(str(error)))
    except Exception as error:
        cause = _line_of(error)
        # Each says it: the first process may be the one that is not heard.
        if is_of_the_others(error):
            _leave_alone(
                f"lost the others: {cause}", "the same command goes on from the last checkpoint"
            )
        if is_shared_memory_full(error):
            _leave_alone(
                f"has no room in /dev/shm: {cause}",
                f"{MORE_SHARED_MEMORY}, then give the same command again",
            )
        if is_full(error):
            _leave_alone(
                f"cannot write: {cause}", "free some space, then give the same command again"
            )
        if isinstance(error, OSError) and error.filename:  # a disk that is read-only, gone, ...
            _leave_alone(f"cannot go on: {cause}", "see to it, then give the same command again")
        if os.environ.get(TRACEBACK):
            raise
        _leave(traceback_of(error), 1, is_told=True)
    else:
        sys.exit(code if isinstance(code, int) else 0)  # --help, or a plugin's ctx.exit(code)


def _check_installed() -> None:
    """Its version is in every checkpoint and report. Raises ValueError."""
    try:
        version("clip-unlearn")
    except PackageNotFoundError:
        found = Path(__file__).parents[1]
        raise ValueError(
            f"clip-unlearn runs from {found}, but is not installed in this Python: "
            f"pip install -e {found}"
        ) from None


def _line_of(error: Exception) -> str:
    """What it says; of a loader worker's, which tells where first, its last line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1 if "loader worker" in lines[0].lower() else 0]


def _leave_alone(what: str, then: str) -> NoReturn:
    """At once: to leave the others' group in order is to wait for them."""
    click.echo(f"process {os.environ.get('RANK', 0)} {what}; {then}", err=True)
    os._exit(1)


def _leave(message: str, code: int, is_told: bool | None = None) -> NoReturn:
    if _is_first_process() if is_told is None else is_told:
        click.echo(message, err=True)
    sys.exit(code)


def _is_first_to_tell(message: str) -> bool:
    """Of several processes with the same mistake one tells it, be it none of the first host's."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            with suppress(Exception):  # the store went with the process that has it
                store = dist.distributed_c10d._get_default_store()
                return store.add(f"told/{sha256(message.encode()).hexdigest()}", 1) == 1
            return True
    # Before they know of each other: a file may be missing on one host alone.
    return _is_first_process() or os.environ.get("LOCAL_RANK") == "0"


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
