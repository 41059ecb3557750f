"""One folder a run: resolved config, metrics as JSON lines, results, report, model."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from trainer.configuration.config import Config
from trainer.data.skips import Skips
from trainer.measures import Measure, Measures, changes, intervals, people, without_people
from trainer.people.fingerprints import REQUESTS, fingerprints
from trainer.reports.report import summary, write_report
from trainer.reports.worst_off import turned
from trainer.runs.checkpoint import Checkpoints
from trainer.runs.claim import CHECKPOINTS, Claim
from trainer.runs.metrics import FAILED, METRICS, failures_in
from trainer.runs.saved import Saved
from trainer.runs.tracking import Trackers
from trainer.strategies.spread import Spread
from trainer.system.files import replace_text
from trainer.system.interruption import EXIT_CODE, MARKER
from trainer.system.progress_bars import progress
from trainer.system.versions import code_version

PEOPLE = "people.jsonl"  # in a run's folder
Failures = dict[str, str]  # an evaluation's name: why it gave nothing


class Run:
    """What a run writes and shows; only the main process does either."""

    def __init__(self, config: Config, accelerator: Accelerator, trains: bool = True):
        self.config, self.accelerator = config, accelerator
        self.folder = Path(config.output)
        self.seconds: dict[str, float] = {}
        self._started_at = perf_counter()
        self._bar: tqdm | None = None
        self._claim = Claim(config, trains, self.say)
        found = self._claim.made_or_refused() if accelerator.is_main_process else None
        # Also a barrier: no other process looks at the folder before it is ours.
        found = broadcast_object_list([found])[0]
        if isinstance(found, Exception):
            raise found  # the same on every rank
        self.saved: Saved | None = found
        if self.saved:
            self.say(f"{self.folder} goes on after step {self.saved.step}")
        is_tracked = config.trackers and accelerator.is_main_process
        self._trackers = Trackers(config, accelerator, self.warn) if is_tracked else None

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
        never = self.config.checkpoint.resume == "never"
        how = "without checkpoint.resume=never " if never else ""
        self.say(f"told to stop after step {step}; {how}the same command goes on from there")
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
            "fingerprints": digests | ({REQUESTS: self._claim.asked} if self._claim.asked else {}),
            "identities": max(self._claim.num_asked, *by_objective),
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
        self._claim.end()


def of_all(skips: Skips) -> Skips:
    """What all ranks passed over, up to here, be it of one rank's shards alone; a collective."""
    everywhere = Skips()
    for own in gather_object([skips]):
        everywhere += own
    return everywhere
