"""The launched processes, by way of the launcher's store: who came, and what each found.

The store needs one port of the first host alone, so that the first process can tell what is wrong
with the rest even if nothing else connects. All waiting ends.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from trainer.doctor.diagnosis import Report

FAREWELL_SECONDS = 10.0


@dataclass(frozen=True)
class Process:
    """What the launcher says of this process."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    host: str = "this host"

    @staticmethod
    def found() -> Process:
        env = os.environ
        return Process(
            int(env.get("RANK", "0")),
            int(env.get("WORLD_SIZE", "1")),
            int(env.get("LOCAL_RANK", "0")),
            int(env.get("LOCAL_WORLD_SIZE", "1")),
            f"host {env.get('GROUP_RANK', '0')} ({socket.gethostname()})",
        )


class Peers:
    """The launched processes, by way of the store. patience: seconds for each thing to come."""

    def __init__(self, process: Process, patience: float):
        """Raises dist.DistError where the first host's port does not answer."""
        self.process, self.patience = process, patience
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=process.rank == 0
            and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            wait_for_workers=False,  # who does not come is to be named
            timeout=timedelta(seconds=patience),
        )
        self.store = dist.PrefixStore("doctor", store)

    def missing(self, what: str) -> list[int]:
        """Say that this process has come so far; the ranks of those that do not in time."""
        self.store.set(f"{what}/{self.process.rank}", "1")
        ends_at = time.monotonic() + self.patience
        return [
            rank
            for rank in range(self.process.ranks)
            if self.wait(f"{what}/{rank}", ends_at - time.monotonic()) is None
        ]

    def wait(self, key: str, seconds: float) -> bytes | None:
        try:
            self.store.wait([key], timedelta(seconds=max(seconds, 0.001)))
            return self.store.get(key)
        except dist.DistError:
            return None

    def gather(self, report: Report) -> dict[int, Report] | None:
        """On the first process the reports that come, by rank; None on the others."""
        if self.process.rank:
            self.store.set(f"report/{self.process.rank}", report.to_json())
            return None
        reports = {0: report}
        ends_at = time.monotonic() + 4 * self.patience  # they may wait longer for the same things
        for rank in range(1, self.process.ranks):
            text = self.wait(f"report/{rank}", ends_at - time.monotonic())
            if text is not None:
                reports[rank] = Report.from_json(text.decode())
        return reports

    def agree(self, is_well: bool) -> bool | None:
        """The first process's verdict; None where it is not heard. It leaves last, since the store
        may go with it."""
        with suppress(dist.DistError):
            if self.process.rank == 0:
                self.store.set("verdict", "1" if is_well else "0")
                ends_at = time.monotonic() + min(self.patience, FAREWELL_SECONDS)
                for rank in range(1, self.process.ranks):
                    self.wait(f"heard/{rank}", ends_at - time.monotonic())
                return is_well
            verdict = self.wait("verdict", 5 * self.patience)
            self.store.set(f"heard/{self.process.rank}", "1")
            return None if verdict is None else verdict == b"1"
        return None
