"""A run's folder made its own: one at a time, going on, or anew with an earlier run set aside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import yaml

from trainer.configuration.config import Config
from trainer.people.fingerprints import digest_of, to_forget
from trainer.people.names import fold
from trainer.reports.report import REPORT
from trainer.runs import same_run
from trainer.runs.metrics import METRICS, cut_metrics
from trainer.runs.saved import CONFIG, Saved, find
from trainer.system.files import replace_text
from trainer.system.interruption import MARKER
from trainer.system.lock import hold

CHECKPOINTS, ASKED = "checkpoints", "asked.sha256"  # in the folder


class Claim:
    """Of the main process, until it ends.

    trains: whether a run is to train here, or only to measure. num_asked: people to forget; asked:
    a digest of them.
    """

    def __init__(self, config: Config, trains: bool, say: Callable[[str], None]):
        self._config, self._trains, self._say = config, trains, say
        self._folder = Path(config.output)
        self._lock: int | None = None
        self.num_asked, self.asked = 0, ""

    def end(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def made_or_refused(self) -> Saved | ValueError | OSError | None:
        try:
            self._lock = hold(self._folder)
            return self._made()
        except (ValueError, OSError) as error:
            return error

    def looked_at(self) -> Saved | None:
        """What a run would go on from. The folder is left as it is. Raises ValueError or OSError
        where one would be refused there, for what can be told before it begins."""
        _refuse_other(self._folder)
        return self._gone_on_from()

    def _made(self) -> Saved | None:
        """Go on with a run of the same configuration that was cut off, or begin a new one."""
        config = self._config.to_yaml()
        _refuse_other(self._folder)
        if not self._trains and (self._folder / CHECKPOINTS).exists():
            raise FileExistsError(
                f"output: {self._folder} is of a run that trained; name another to measure in"
            )
        (self._folder / MARKER).unlink(missing_ok=True)
        saved = self._gone_on_from()
        if saved:
            cut_metrics(self._folder / METRICS, saved.step)
            for aside in (self._folder / CHECKPOINTS).glob("step-*.tmp"):  # a save that was cut off
                shutil.rmtree(aside, ignore_errors=True)
        else:
            changes = self._changes() if (self._folder / CONFIG).exists() else []
            if kept := set_aside(self._folder):
                other = f", of another {', '.join(changes)}," if changes else ""
                self._say(f"an earlier run{other} is kept as {kept}")
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_text(self._folder / ASKED, self.asked)
        replace_text(self._folder / CONFIG, config)
        return saved

    def _gone_on_from(self) -> Saved | None:
        self._ask()
        return self._cut_off() if self._config.checkpoint.resume == "auto" else None

    def _ask(self) -> None:
        """Whom it is to forget, as of now: who comes into a roster while it trains is not among
        them."""
        people = to_forget(self._config.resolved())
        self.num_asked = len({fold(one.name) for one in people})
        self.asked = digest_of(one.pseudonym for one in people) if people else ""

    def _check_asked(self) -> None:
        """That they are those of the run in the folder, which goes on."""
        asked = self._folder / ASKED
        if asked.exists() and asked.read_text() != self.asked:
            raise ValueError(
                f"{self._folder}: other people are to be forgotten now than when it began; "
                "restore the rosters, or begin anew with checkpoint.resume=never"
            )

    def _cut_off(self) -> Saved | None:
        """What a run of this configuration that was cut off goes on from; cut off is one before its
        report, the last that it writes. Raises ValueError where it was to forget other people."""
        if (self._folder / REPORT).exists() or not (self._folder / CONFIG).exists():
            return None
        changes = self._changes()
        # Where steps are counted from people, other people alone make them others.
        is_by_people = changes == ["steps"] and self._config.steps_follow_people
        saved = find(self._folder / CHECKPOINTS) if not changes or is_by_people else None
        if saved:
            self._check_asked()
        return None if changes else saved

    def _changes(self) -> list[str]:
        """The options that are not those of the run in the folder, of what its result follows
        from."""
        try:
            its_own = yaml.safe_load((self._folder / CONFIG).read_text(encoding="utf-8"))
            return same_run.changes(its_own, self._config.resolved())
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError):  # not by us
            return [CONFIG]


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
