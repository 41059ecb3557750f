"""Is everything there that a run needs? Looked at before one is waited for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import click
import torch
import torch.distributed as dist
from open_clip.factory import parse_model_name

from trainer.api import BadSample
from trainer.configuration.config import Config, load_config
from trainer.data.batches import shared_bytes
from trainer.data.captions import LINES, PARQUET
from trainer.data.readers import EMPTY, Reading, Share, read_share
from trainer.data.remote import Patience
from trainer.data.steps import check_sizes
from trainer.data.streams import expand
from trainer.doctor.diagnosis import (
    Finding,
    Report,
    differences,
    fail,
    is_well,
    lines_of,
    ok,
    warn,
)
from trainer.doctor.installation import installation, versions
from trainer.doctor.machine import SHARED_BYTES, gpus, open_files, room, shared_memory
from trainer.doctor.peers import Peers, Process
from trainer.doctor.reachability import all_reduce, backends, is_hung, shared_file, unanswered
from trainer.models import clip as clips
from trainer.models.clip import Clip
from trainer.optim import check_movable
from trainer.runs.claim import Claim
from trainer.runs.saved import whole
from trainer.strategies.launching import Launch
from trainer.system.addresses import shown
from trainer.system.lock import beside, hold

SHARD_PATIENCE = Patience(seconds=10.0, timeout_seconds=10.0)


def examine(path: Path | None, overrides: Sequence[str], patience: float) -> int:
    """Prints what is found, of all launched processes on the first; gives the exit code.

    patience: seconds to wait for the others.
    """
    process = Process.found()
    config: Config | None = None
    findings: list[Finding] = []
    facts = versions()
    if path is not None:
        try:
            config = load_config(path, overrides)
        except (ValueError, OSError) as error:
            findings += [fail(line, f"change {path}") for line in str(error).splitlines()]
        else:
            # Not the text itself: it names where the rosters are.
            facts["configuration"] = sha256(config.to_yaml().encode()).hexdigest()[:8]
    if process.local_rank == 0:  # the others of this host would find the same
        findings = [*of_host(process), *findings, *of_run(config, process)]
    if process.ranks == 1:
        return _told([Report(process.host, tuple(findings))])
    try:
        return _among(Peers(process, patience), config, findings, facts)
    except dist.DistError as error:  # the store is gone: each tells its own
        findings.append(unanswered(error, patience))
        return _told([Report(process.host, tuple(findings))])


def _among(
    peers: Peers, config: Config | None, findings: list[Finding], facts: dict[str, str]
) -> int:
    """The same with several processes."""
    process = peers.process
    of_all: list[Finding] = []
    missing = peers.missing("came")
    if not missing:
        for backend in backends():
            found = all_reduce(peers, backend)
            (of_all if found.level == "ok" else findings).append(found)
    with shared_file(peers, config.output if config else Path("runs")) as seen:
        own = Report(process.host, (*findings, *seen), facts)
        reports = peers.gather(own)
    if reports is None:
        verdict = peers.agree(True)
        return _told([own]) if verdict is None else int(not verdict)
    if lost := sorted({*missing, *range(process.ranks)} - (reports.keys() - {*missing})):
        of_all.append(
            fail(
                f"process {', '.join(map(str, lost))} of {process.ranks} did not come within "
                f"{peers.patience:g} s",
                "look at its launcher's output, or allow more time with --patience",
            )
        )
    all_of_them = list(reports.values())
    code = _told([*all_of_them, Report("", (*of_all, *differences(all_of_them)))])
    peers.agree(code == 0)
    return code


def _told(reports: list[Report]) -> int:
    for line in lines_of(reports):
        click.echo(line)
    return int(not is_well(reports))


def leave(code: int) -> None:
    """At once, where a library would be waited for without end."""
    sys.stdout.flush()
    if is_hung():
        os._exit(code)


def of_host(process: Process) -> Iterator[Finding]:
    yield from installation()
    yield from gpus(process.local_ranks)
    yield from open_files()


def weightless(config: Config) -> Clip | None:
    """None: the model would have to be fetched. Raises ValueError or OSError where a run would."""
    if parse_model_name(config.model.name)[0] == "hf-hub":
        return None
    return clips.load(config.model, weightless=True)


def run_bytes(config: Config, clip: Clip, num_there: int = 0) -> int:
    """What a run writes: each checkpoint holds the trained weights and two moments of each, one
    more is written than is kept, and the model is exported. Raises ValueError where a run would.

    num_there: whole checkpoints of the run that is gone on with, which take no more room.
    """
    student = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
    check_movable(student, config.optimizer)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    exported = sum(p.numel() for p in clip.model.parameters())
    kept = config.checkpoint.keep
    checkpoints = 1 if config.checkpoint.every is None else kept + 1 - min(num_there, kept)
    size = getattr(torch, config.export.dtype).itemsize
    return 3 * torch.float32.itemsize * trained * checkpoints + size * exported


def of_run(config: Config | None, process: Process) -> Iterator[Finding]:
    if config is None:
        yield from shared_memory(process.local_ranks)
        yield from room(Path("runs"), None)
        return
    yield ok(f"the configuration is valid; output goes to {config.output}")
    launch = Launch.of_environment()
    try:
        launch.check(config.optimizer)
    except ValueError as error:
        yield fail(str(error), "the run would be refused as it is")
    try:
        check_sizes(config.objectives, config.data.lanes, process.ranks, launch.parts)
    except ValueError as error:
        yield fail(str(error), "or launch another number of processes")
    found, num_there = of_folder(config)
    yield from found
    wanted: int | None = 0
    shared = SHARED_BYTES
    try:
        clip = weightless(config)
        wanted = run_bytes(config, clip, num_there) if clip else None
        if clip:
            size = clip.prepare.size
            shared = shared_bytes(config.objectives, config.data, size, process.ranks)
    except (ValueError, OSError) as error:
        yield fail(str(error), "see to model.name, model.pretrained and model.freeze")
    yield from shared_memory(process.local_ranks, bytes_each=shared)
    yield from room(config.output, wanted)
    if process.rank == 0:
        yield from in_use(config.output)
    yield from shards(config)


def of_folder(config: Config) -> tuple[list[Finding], int]:
    """What a run would find where it writes; how many whole checkpoints it would go on with."""
    try:
        saved = Claim(config, trains=True, say=click.echo).looked_at()
    except (ValueError, OSError) as error:
        return [fail(str(error), "the run would be refused as it is")], 0
    if saved is None:
        return [], 0
    goes_on = ok(f"{config.output} goes on after step {saved.step}")
    return [goes_on], len(whole(saved.folder.parent))


def in_use(folder: Path) -> Iterator[Finding]:
    """Whether another run is writing there. To look is to hold the lock for a moment."""
    if not beside(folder).exists():
        return
    try:
        os.close(hold(folder))
    except (ValueError, OSError) as error:
        yield fail(str(error), "a run can begin there when that is over")


def shards(config: Config) -> Iterator[Finding]:
    """The first and the last of each source are opened; all that are local are there."""
    sources = [
        config.data.shards,
        *(one.options.shards or [] for one in config.objectives.values()),
    ]
    patterns = {
        tuple([one] if isinstance(one, str) else one.shards) for source in sources for one in source
    }
    for pattern in sorted(patterns):
        try:
            urls = expand(pattern)
            wrong = [
                found for url in dict.fromkeys((urls[0], urls[-1])) for found in _wrong(url, config)
            ]
        except (ValueError, OSError) as error:
            yield fail(str(error), "see to data.shards and the objectives' shards")
            continue
        yield from wrong
        if not wrong:
            yield ok(f"{len(urls):,} shards from {shown(urls[0])} on; the first and last are read")


def _wrong(url: str, config: Config) -> Iterator[Finding]:
    data = config.data
    is_whole = url.lower().endswith((*LINES, *PARQUET))  # from elsewhere only by way of the cache
    reading = Reading(
        index=data.index,
        cache=data.cache if is_whole else None,  # a shard is not worth its whole download here
        caption_column=data.caption_column,
        patience=SHARD_PATIENCE,
    )
    first = next(iter(read_share(Share(url), 0, reading)), None)
    if first is None or (isinstance(first, BadSample) and first.reason == EMPTY):
        yield warn(f"{shown(url)} holds no sample", "leave it out, or write it again")
    elif isinstance(first, BadSample):
        yield warn(
            f"the first sample of {shown(url)} is of no use: {first.reason}",
            "write the shard again; a run skips such samples up to data.max_bad_share",
        )
