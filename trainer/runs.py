"""One folder a run: resolved config, metrics as JSON lines, results, report, model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from trainer.checkpoint import Checkpoints, Saved, find
from trainer.config import Config
from trainer.interruption import EXIT_CODE, MARKER
from trainer.measures import Measure, Measures, intervals, people, without_people
from trainer.report import summary, write_report
from trainer.skips import Skips
from trainer.spread import Spread
from trainer.versions import code_version

MAY_CHANGE = {"checkpoint", "margin", "memory", "profile", "timeout_seconds", "trackers"}
MAY_CHANGE_OF_DATA = {"workers", "patience_seconds", "cache", "index"}
CHECKPOINTS, METRICS, PEOPLE = "checkpoints", "metrics.jsonl", "people.jsonl"  # in a run's folder


class Run:
    """What a run writes and shows; only the main process does either."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.folder = Path(config.output)
        self.seconds: dict[str, float] = {}
        self._started_at = perf_counter()
        self._bar: tqdm | None = None
        saved = self._claim() if accelerator.is_main_process else None
        # Also a barrier: no other process looks at the folder before it is ours.
        self.saved: Saved | None = broadcast_object_list([saved])[0]
        if self.saved:
            self.say(f"{self.folder} goes on after step {self.saved.step}")
        if config.trackers:
            # Offline unless the user says otherwise: nothing leaves the machine by default.
            os.environ.setdefault("WANDB_MODE", "offline")
            accelerator.init_trackers(
                "clip-unlearn",
                config=_flat(config.resolved()),
                init_kwargs={"wandb": {"name": self.folder.name, "dir": str(self.folder)}},
            )

    def _claim(self) -> Saved | None:
        """Go on with a run of the same configuration that was cut off, or begin a new one."""
        config = self.config.to_yaml()
        (self.folder / MARKER).unlink(missing_ok=True)
        may_go_on = self.config.checkpoint.resume == "auto" and self._was_cut_off()
        saved = find(self.folder / CHECKPOINTS) if may_go_on else None
        if saved:
            cut_metrics(self.folder / METRICS, saved.step)
        else:
            set_aside(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "config.yaml", config)
        return saved

    def _was_cut_off(self) -> bool:
        written = self.folder / "config.yaml"
        if (self.folder / "results.json").exists() or not written.exists():
            return False
        its_own = yaml.safe_load(written.read_text())
        return _what_counts(its_own) == _what_counts(self.config.resolved())

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started_at = perf_counter()
        yield
        self.seconds[phase] = round(perf_counter() - started_at, 2)
        self.say(f"{phase}: {self.seconds[phase]:.1f} s")

    def checkpoints(self, spread: Spread) -> Checkpoints | None:
        """None where none are wanted."""
        options = self.config.checkpoint
        if options.every is None:
            return None
        folder = self.folder / CHECKPOINTS
        return Checkpoints(folder, options.every, options.keep, spread, self.accelerator)

    def saved_in(self, saves: Checkpoints) -> None:
        """Waits for the last, and tells how long they held the training up."""
        saves.wait()
        if saves.held_up:
            self.seconds["saving"] = round(sum(saves.held_up), 3)
            each = 1000 * self.seconds["saving"] / len(saves.held_up)
            self.say(f"{len(saves.held_up)} checkpoints, each held a step up for {each:.0f} ms")

    def leave(self, step: int, saves: Checkpoints | None) -> NoReturn:
        """In the middle, as it was told to. Launch files start a run again that left the marker."""
        if saves:
            saves.wait()
        if self.accelerator.is_main_process:
            (self.folder / MARKER).write_text(f"{step}\n")
        self.accelerator.wait_for_everyone()
        how = "the same command goes on from there" if saves else "nothing was saved"
        self.say(f"told to stop after step {step}; {how}")
        raise SystemExit(EXIT_CODE)

    def say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def progress(self, steps: Iterable, first: int, total: int) -> Iterator:
        self._bar = tqdm(
            steps,
            initial=first,
            total=total,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        yield from self._bar

    def log(
        self, step: int, values: Mapping[str, Measure], show: Mapping[str, float] | None = None
    ) -> None:
        """A row to metrics.jsonl, its scalars to the trackers; show: on the progress bar."""
        if not self.accelerator.is_main_process or not values:
            return
        numbers = without_people(values)
        row = {"step": step, "seconds": round(perf_counter() - self._started_at, 2), **numbers}
        with open(self.folder / METRICS, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self.config.trackers:
            scalars = {name: one for name, one in numbers.items() if not isinstance(one, list)}
            self.accelerator.log(scalars, step=step)
        if show and self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in show.items()})

    def finish(self, before: Measures, after: Measures, skips: Skips, steps: int) -> None:
        """results.json, the report, and the table a stranger understands."""
        total_skips = Skips()
        for one in gather_object([skips]):
            total_skips += one
        if not self.accelerator.is_main_process:
            return
        total = round(perf_counter() - self._started_at, 2)
        results = {
            "before": without_people(before),
            "after": without_people(after),
            "intervals": {"before": intervals(before), "after": intervals(after)},
            "seconds": self.seconds | {"total": total},
            "steps": steps,
            "margin": self.config.margin,
            "code": code_version(),
            "identities": max(one.num_identities for one in self.config.objectives.values()),
            "skipped": dict(total_skips.reasons),
            "bad_shards": total_skips.worst_shards(),
        }
        if found := people(before, after):
            lines = "".join(json.dumps(row) + "\n" for row in found)
            (self.folder / PEOPLE).write_text(lines)
        aside = self.folder / ".results.json.tmp"
        aside.write_text(json.dumps(results, indent=2))
        aside.replace(self.folder / "results.json")
        page = write_report(self.folder)
        self.say(f"\n{summary(results)}\n\nreport: {page}\nmodel:  {self.folder / 'model'}")


def cut_metrics(path: Path, step: int) -> None:
    """Rows of later steps go, which are taken again; so does a row that was cut off."""
    rows = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            rows.append(line)
    _replace(path, "".join(rows))


def _replace(path: Path, text: str) -> None:
    """Whole or as it was."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text)
    aside.replace(path)


def _what_counts(resolved: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration: what its result follows from. The rest may change between two starts."""
    counts = {name: one for name, one in resolved.items() if name not in MAY_CHANGE}
    data = counts["data"]
    return counts | {"data": {name: data[name] for name in data.keys() - MAY_CHANGE_OF_DATA}}


def set_aside(folder: Path) -> None:
    """An earlier run of the same name keeps its files, under `<name>.1`, `.2`, ..."""
    if folder.exists() and any(folder.iterdir()):
        places = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
        folder.rename(next(place for place in places if not place.exists()))


def _flat(tree: dict, above: str = "") -> dict[str, str | int | float]:
    """Nested options as `data.lanes: 64`: trackers take no trees."""
    flat: dict[str, str | int | float] = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}.")
        else:
            flat[path] = value if isinstance(value, (str, int, float)) else str(value)
    return flat
