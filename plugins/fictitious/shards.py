"""A world written to disk: all of it or nothing, the same bytes for any number of workers."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from plugins.fictitious import captions
from plugins.fictitious.names import Names
from plugins.fictitious.world import KNOWN, Shard, World, classes_of, names_of, person_id, plan
from trainer import progress

FORMAT = 3  # raise it when the same arguments give other bytes
RECORD = "world.json"


def draw_world(out: str | Path, world: World, workers: int | None = None) -> bool:
    """Draw it into a new folder; False if it stands there already. Raises FileExistsError."""
    out = Path(out)
    if out.exists():
        _check_same(out, world)
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    # Of its own, not one fixed name: two that draw at once must not mix.
    with TemporaryDirectory(prefix=f"{out.name}.drawing-", dir=out.parent) as aside:
        folder = Path(aside, out.name)
        names = names_of(world)
        counts = _write_shards(folder, world, names, workers or os.cpu_count() or 1)
        _write_rosters(folder / "rosters", world, names)
        _write_lines(folder / "names/distractors.txt", names.distractors)
        _write_lines(folder / "names/other_names.txt", names.other_names)
        for task, templates in captions.LABEL_TEMPLATES.items():
            _write_lines(folder / "labels" / task / "classnames.txt", classes_of(task))
            path = folder / "labels" / task / "zeroshot_classification_templates.txt"
            _write_lines(path, templates)
        record = {"format": FORMAT, "arguments": asdict(world), "samples": counts}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        folder.rename(out)
    return True


def _check_same(out: Path, world: World) -> None:
    if not (out / RECORD).is_file():
        raise FileExistsError(
            f"{out} exists but is no world (it has no {RECORD}); name another folder"
        )
    record = json.loads((out / RECORD).read_text())
    if record["format"] != FORMAT:
        raise FileExistsError(
            f"{out} holds a world of format {record['format']}, this version draws {FORMAT}; "
            "remove it or name another folder"
        )
    found, wanted = record["arguments"], asdict(world)
    if found != wanted:
        differing = ", ".join(f"{k}={found.get(k)}" for k in wanted if found.get(k) != wanted[k])
        raise FileExistsError(
            f"{out} holds another world, of {differing}; "
            "ask for that one, remove it, or name another folder"
        )


def _write_shards(folder: Path, world: World, names: Names, workers: int) -> dict[str, int]:
    """Number of samples in each folder of shards."""
    shards = list(plan(world, names))
    write = partial(_write_shard, folder, world)
    counts: Counter[str] = Counter()
    # Forked, as a DataLoader's: to import the package again takes seconds and half a gigabyte.
    # Not a Pool: that waits for ever for a worker that was killed, for memory say.
    num_workers = min(workers, len(shards))
    processes = ProcessPoolExecutor(num_workers, get_context("fork"), _end_with_parent)
    with processes as pool:
        written = pool.map(write, shards)
        for path, count in progress(written, total=len(shards), desc="drawing", unit="shard"):
            counts[os.path.dirname(path)] += count
    return dict(sorted(counts.items()))


def _end_with_parent() -> None:
    """A worker would wait for work for ever when its parent is killed."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _write_shard(folder: Path, world: World, shard: Shard) -> tuple[str, int]:
    path = folder / shard.path
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, parts in shard.draw(world, *shard.arguments):
            count += 1
            for extension, data in parts.items():
                # Its time and owner stay 0: the same bytes every time.
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return shard.path, count


def _write_rosters(folder: Path, world: World, names: Names) -> None:
    folder.mkdir()
    for group, (role, numbers) in world.groups().items():
        people = names.known if role == KNOWN else names.unknown
        trained = f"../faces/{group}.tar" if group in ("forget", "replayed") else ""
        for roster, pictures in ((group, trained), (f"attack_{group}", f"../attack/{group}.tar")):
            with open(folder / f"{roster}.csv", "w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(["id", "name", "faces"])
                rows.writerows([person_id(role, i), people[i], pictures] for i in numbers)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
