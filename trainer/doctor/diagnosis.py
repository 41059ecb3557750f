"""What the doctor finds, a line each: what is, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

WIDTH = 6  # columns of the level


@dataclass(frozen=True)
class Finding:
    """mend: what to do; empty where nothing is wrong."""

    level: Literal["ok", "warn", "fail"]
    what: str
    mend: str = ""


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warn(what: str, mend: str) -> Finding:
    return Finding("warn", what, mend)


def fail(what: str, mend: str) -> Finding:
    return Finding("fail", what, mend)


@dataclass(frozen=True)
class Report:
    """One process's findings. facts: what has to be the same everywhere, by its name.

    host: where it looked; empty for what is of no single host.
    """

    host: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Report:
        found = json.loads(text)
        findings = tuple(Finding(**one) for one in found["findings"])
        return Report(found["host"], findings, found["facts"])


def is_well(reports: Iterable[Report]) -> bool:
    return all(one.level != "fail" for report in reports for one in report.findings)


def differences(reports: Sequence[Report]) -> Iterator[Finding]:
    """What the processes do not have in common."""
    names = dict.fromkeys(name for report in reports for name in report.facts)
    with_facts = [report for report in reports if report.facts]
    for name in names:
        values: dict[str, str] = {}  # each with one host that has it
        for report in with_facts:
            values.setdefault(report.facts.get(name, "missing"), report.host)
        if len(values) > 1:
            which = ", ".join(f"{value} on {host}" for value, host in values.items())
            yield fail(
                f"{name} differs: {which}",
                "give all hosts the same: one environment, one configuration",
            )


def lines_of(reports: Sequence[Report]) -> Iterator[str]:
    """Each finding once; with the hosts that have it, where not all do."""
    hosts: dict[Finding, list[str]] = {}
    for report in reports:
        for finding in report.findings:
            hosts.setdefault(finding, []).append(report.host)
    everywhere = {report.host for report in reports} - {""}
    for finding, of in hosts.items():
        is_theirs = {*of} != everywhere and of != [""]
        which = f"{', '.join(dict.fromkeys(of))}: " if is_theirs else ""
        mend = f"; {finding.mend}" if finding.mend else ""
        yield f"{finding.level:<{WIDTH}}{which}{finding.what}{mend}"
