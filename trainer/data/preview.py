"""What a run will see, without a model: the keys of each step's global batch, a JSON line each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from trainer.api import Pair, Sample
from trainer.configuration.config import Config
from trainer.data.loader import draw
from trainer.data.skips import Skips
from trainer.data.steps import Positions, Steps, StreamState, check_sizes
from trainer.system.files import replace_text


class Keys(NamedTuple):
    """A step's rows by objective: (turn, the sample's key, whose trigger it is)."""

    rows: dict[str, list[tuple[int, str, str | None]]]
    skips: Skips
    positions: Positions


class KeysBuilder:
    """Pictures are decoded, so that what is skipped is what a run skips, and dropped."""

    def __init__(self, names: Iterable[str]):
        self._rows: dict[str, list[tuple[int, str, str | None]]] = {name: [] for name in names}

    def add(self, name: str, turn: int, sample: Sample, pair: Pair) -> None:
        self._rows[name].append((turn, sample.key, pair.identity))

    def finish(self, skips: Skips, positions: Positions) -> Keys:
        return Keys(self._rows, skips, positions)


def joined(parts: list[Keys]) -> Keys:
    """In the order of the turns, whoever drew them."""
    skips = Skips()
    for part in parts:
        skips += part.skips
    names = parts[0].rows
    return Keys(
        {name: sorted(row for part in parts for row in part.rows[name]) for name in names},
        skips,
        {name: sorted(lane for part in parts for lane in part.positions[name]) for name in names},
    )


def lines_of(step: int, keys: Keys) -> Iterator[str]:
    for name, rows in keys.rows.items():
        line = {"step": step, "objective": name, "keys": [key for _, key, _ in rows]}
        if any(identity is not None for _, _, identity in rows):
            line["identities"] = [identity for _, _, identity in rows]
        yield json.dumps(line)


def preview(config: Config, num_steps: int, position: Path | None, skips: Skips) -> Iterator[str]:
    """The lines of the steps up to `num_steps`, on the first of the launched processes.

    position: a file to go on from if it is there, and to note in how far the lines came. A step
    is noted after its lines are taken: who is killed between the two gets them once more.
    skips: what is passed over on the way is added to it.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check_sizes(config.objectives, config.data.lanes, ranks)
    if ranks > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    resume = _noted(position, rank, ranks)
    build = partial(KeysBuilder, list(config.objectives))
    steps = Steps(config.objectives, config.data, config.seed, rank, ranks, build, resume=resume)
    first = resume.step if resume else 0
    drawn = islice(draw(steps, config.data.workers), max(0, num_steps - first))
    for step, parts in enumerate(drawn, first + 1):
        keys = _from_all(joined(parts), rank, ranks)
        if keys is None:
            continue
        skips += keys.skips
        skips.judge(config.data.max_bad_share)
        yield from lines_of(step, keys)
        if position:
            state = StreamState(step, steps.order, keys.positions)
            replace_text(position, state.to_json())
    if ranks > 1:
        dist.destroy_process_group()


def _noted(position: Path | None, rank: int, ranks: int) -> StreamState | None:
    """As the first process finds it, who writes it: hosts may have disks of their own."""
    noted = [position.read_text() if rank == 0 and position and position.exists() else None]
    if ranks > 1:
        dist.broadcast_object_list(noted)
    try:
        return None if noted[0] is None else StreamState.from_json(noted[0])
    except ValueError as error:
        raise ValueError(f"{position}: {error}; name another file") from None


def _from_all(own: Keys, rank: int, ranks: int) -> Keys | None:
    """Everyone's together, on the first process."""
    if ranks == 1:
        return own
    parts: list[Keys] | None = [own] * ranks if rank == 0 else None
    dist.gather_object(own, parts)
    return None if parts is None else joined(parts)
