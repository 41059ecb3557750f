"""One folder a run: resolved config, metrics as JSON lines, results, report, model."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from trainer.configuration.config import Config
from trainer.data.skips import Skips
from trainer.measures import Measure, Measures, changes, intervals, people, without_people
from trainer.people.fingerprints import REQUESTS, digest_of, fingerprints, to_forget
from trainer.people.names import fold
from trainer.reports.report import REPORT, summary, write_report
from trainer.reports.worst_off import turned
from trainer.runs import same_run
from trainer.runs.checkpoint import Checkpoints
from trainer.runs.metrics import FAILED, cut_metrics, failures_in
from trainer.runs.saved import CONFIG, Saved, find
from trainer.runs.tracking import Trackers
from trainer.strategies.spread import Spread
from trainer.system.files import replace_text
from trainer.system.interruption import EXIT_CODE, MARKER
from trainer.system.lock import hold
from trainer.system.progress_bars import progress
from trainer.system.versions import code_version

# In a run's folder.
CHECKPOINTS, METRICS, PEOPLE, ASKED = "checkpoints", "metrics.jsonl", "people.jsonl", "asked.sha256"
Failures = dict[str, str]  # an evaluation's name: why it gave nothing


class Run:
    """What a run writes and shows; only the main process does either."""

    def __init__(self, config: Config, accelerator: Accelerator, trains: bool = True):
        self.config, self.accelerator, self._trains = config, accelerator, trains
        self.folder = Path(config.output)
        self.seconds: dict[str, float] = {}
        self._started_at = perf_counter()
        self._bar: tqdm | None = None
        self._lock: int | None = None
        found = self._claim_or_refusal() if accelerator.is_main_process else None
        # Also a barrier: no other process looks at the folder before it is ours.
        found = broadcast_object_list([found])[0]
        if isinstance(found, Exception):
            raise found  # the same on every rank
        self.saved: Saved | None = found
        if self.saved:
            self.say(f"{self.folder} goes on after step {self.saved.step}")
        is_tracked = config.trackers and accelerator.is_main_process
        self._trackers = Trackers(config, accelerator, self.warn) if is_tracked else None

    def _claim_or_refusal(self) -> Saved | ValueError | OSError | None:
        try:
            self._lock = hold(self.folder)
            return self._claim()
        except (ValueError, OSError) as error:
            return error

    def _claim(self) -> Saved | None:
        """Go on with a run of the same configuration that was cut off, or begin a new one."""
        config = self.config.to_yaml()
        _refuse_other(self.folder)
        if not self._trains and (self.folder / CHECKPOINTS).exists():
            raise FileExistsError(
                f"output: {self.folder} is of a run that trained; name another folder to measure in"
            )
        (self.folder / MARKER).unlink(missing_ok=True)
        may_go_on = self.config.checkpoint.resume == "auto" and self._was_cut_off()
        saved = find(self.folder / CHECKPOINTS) if may_go_on else None
        self._ask()
        if saved:
            self._check_asked()
            cut_metrics(self.folder / METRICS, saved.step)
            for aside in (self.folder / CHECKPOINTS).glob("step-*.tmp"):  # a save that was cut off
                shutil.rmtree(aside, ignore_errors=True)
        else:
            changes = self._changes() if (self.folder / CONFIG).exists() else []
            if kept := set_aside(self.folder):
                other = f", of another {', '.join(changes)}," if changes else ""
                self.say(f"an earlier run{other} is kept as {kept}")
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / ASKED, self._asked)
        replace_text(self.folder / CONFIG, config)
        return saved

    def _ask(self) -> None:
        """Whom it is to forget, as of now: who comes into a roster while it trains is not among
        them."""
        people = to_forget(self.config.resolved())
        self._num_asked = len({fold(one.name) for one in people})
        self._asked = digest_of(one.pseudonym for one in people) if people else ""

    def _check_asked(self) -> None:
        """That they are those of the run in the folder, which goes on."""
        asked = self.folder / ASKED
        if asked.exists() and asked.read_text() != self._asked:
            raise ValueError(
                f"{self.folder}: other people are to be forgotten now than when it began; "
                "restore the rosters, or begin anew with checkpoint.resume=never"
            )

    def _was_cut_off(self) -> bool:
        """Before its report, the last that it writes; and of this configuration."""
        written = self.folder / CONFIG
        return not (self.folder / REPORT).exists() and written.exists() and not self._changes()

    def _changes(self) -> list[str]:
        """The options that are not those of the run in the folder, of what its result follows
        from."""
        try:
            its_own = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))
            return same_run.changes(its_own, self.config.resolved())
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError):  # not by us
            return [CONFIG]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started_at = perf_counter()
        yield
        self.seconds[phase] = round(perf_counter() - started_at, 2)
        self.say(f"{phase}: {self.seconds[phase]:.1f} s")

    def checkpoints(self, spread: Spread) -> Checkpoints:
        return Checkpoints(
            self.folder / CHECKPOINTS,
            self.config.checkpoint,
            spread,
            self.accelerator,
            self.config.to_yaml(),
            self.saved.folder if self.saved else None,
        )

    def saved_in(self, saves: Checkpoints) -> None:
        """Waits for the last, and tells how long they held the training up."""
        saves.wait()
        if saves.failure:
            self.warn(f"{saves.failure}; the training is done and its model comes all the same")
        if saves.held_up:
            self.seconds["saving"] = round(sum(saves.held_up), 3)
            each = 1000 * self.seconds["saving"] / len(saves.held_up)
            self.say(f"{len(saves.held_up)} checkpoints, each held a step up for {each:.0f} ms")

    def leave(self, step: int, saves: Checkpoints) -> NoReturn:
        """In the middle, as it was told to. Launch files start a run again that left the marker."""
        saves.settle()
        if self.accelerator.is_main_process:
            (self.folder / MARKER).write_text(f"{step}\n")
        self.accelerator.wait_for_everyone()
        self.say(f"told to stop after step {step}; the same command goes on from there")
        raise SystemExit(EXIT_CODE)

    def say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def warn(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stderr)

    def progress(self, steps: Iterable, first: int, total: int) -> Generator:
        self._bar = progress(
            steps,
            initial=first,
            total=total,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        yield from self._bar

    def log(
        self,
        step: int,
        values: Mapping[str, Measure],
        failed: Failures | None = None,
        show: Mapping[str, float] | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        """A row to metrics.jsonl, its scalars to the trackers; show: on the progress bar; beside:
        in the row alone."""
        if not self.accelerator.is_main_process or not (values or failed):
            return
        numbers = without_people(values)
        row: dict[str, Any] = {"step": step, "seconds": round(perf_counter() - self._started_at, 2)}
        row |= numbers | dict(beside or {})
        if failed:
            row[FAILED] = failed
            for name, why in failed.items():
                self.warn(f"step {step}: {name} was not measured: {why}; the run goes on")
        with open(self.folder / METRICS, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self._trackers:
            scalars = {name: one for name, one in numbers.items() if not isinstance(one, list)}
            self._trackers.log(scalars, step)
        if show and self._bar is not None:
            told = {name: f"{value:.3g}" for name, value in show.items()}
            self._bar.set_postfix(told, refresh=False)

    def finish(self, before: Measures, after: Measures, skips: Skips, steps: int) -> None:
        """results.json, the report, and the table a stranger understands."""
        total_skips = of_all(skips)
        if not self.accelerator.is_main_process:
            return
        total = round(perf_counter() - self._started_at, 2)
        found = people(before, after)
        after = {**after, **turned(found)}
        digests = fingerprints(self.config.resolved(), self.folder)
        by_objective = [one.num_identities for one in self.config.objectives.values()]
        results = {
            "before": without_people(before),
            "after": without_people(after),
            "intervals": {"before": intervals(before), "after": intervals(after)},
            "changes": changes(before, after),
            "seconds": self.seconds | {"total": total},
            "steps": steps,
            "resumed_at": self.saved.step if self.saved else 0,
            "margin": self.config.margin,
            "code": code_version(),
            "fingerprints": digests | ({REQUESTS: self._asked} if self._asked else {}),
            "identities": max(self._num_asked, *by_objective),
            "skipped": dict(total_skips.reasons),
            "bad_shards": total_skips.worst_shards(),
            "failed": failures_in(self.folder / METRICS),
        }
        if found:
            replace_text(self.folder / PEOPLE, "".join(json.dumps(row) + "\n" for row in found))
        replace_text(self.folder / "results.json", json.dumps(results, indent=2))
        page = write_report(self.folder)
        model = self.folder / "model"
        written = f"\nmodel:  {model}" if model.is_dir() else ""  # who measures alone writes none
        self.say(f"\n{summary(results)}\n\nreport: {page}{written}")

    def end(self) -> None:
        """Nothing is written any more."""
        if self._trackers:
            self._trackers.finish()
        self.accelerator.end_training()
        if self._lock is not None:
            os.close(self._lock)


def _refuse_other(folder: Path) -> None:
    """An earlier run is set aside, but nothing else that somebody keeps there."""
    own = (CONFIG, ASKED, METRICS, CHECKPOINTS)
    there = folder.iterdir() if folder.exists() else ()
    found = {path.name for path in there if not path.name.startswith(".")}  # those are half written
    if found and found.isdisjoint(own):
        raise FileExistsError(f"output: {folder} is not empty and no run's; name another folder")


def set_aside(folder: Path) -> Path | None:
    """An earlier run of the same name keeps its files, under `<name>.1`, `.2`, ...: where."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    places = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
    return folder.rename(next(place for place in places if not place.exists()))


def of_all(skips: Skips) -> Skips:
    """What all ranks passed over, up to here, be it of one rank's shards alone; a collective."""
    everywhere = Skips()
    for own in gather_object([skips]):
        everywhere += own
    return everywhere
