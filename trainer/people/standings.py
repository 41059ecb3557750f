"""What a run did with people who were taken out of a roster: forgot, left, taught, still finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.configuration.yaml_text import read_yaml
from trainer.people.fingerprints import digest_of
from trainer.people.names import fold
from trainer.people.roster import Identity, names_of, read_roster
from trainer.people.suppression import (
    ANY_ROSTER,
    RECORD,
    key_there,
    keyed_hash,
    read_record,
    removed_at,
)
from trainer.reports.results import read_results
from trainer.reports.worst_off import WON, read_people

WON_BY = "prompts_won_by"  # the same by each other way to write their name


class Standing(NamedTuple):
    """Someone who was taken out of a roster, and what a run did with their name or an alias."""

    pseudonym: str
    was_to_be_forgotten: bool
    is_taught: bool
    # Prompts of its attack, after it, in the writing that most find; None: they were not attacked.
    found_by: int | None


def standings(roster: Path, run: Path) -> list[Standing]:
    """Of everyone in the record beside the roster, by the rosters that the run's objectives read
    and by what its attack found.

    Raises ValueError and FileNotFoundError where these do not tell.
    """
    rows = read_record(roster.parent / RECORD)
    if not rows:
        return []
    key = key_there(roster)
    digest = read_results(run).fingerprints.get("requests")
    config = read_yaml(run / "config.yaml")
    forget, teach = _rosters_of(config["objectives"].values())
    people = {path: _people_of(path, run) for path in sorted(forget | teach)}
    forgotten, taught = (
        _by_name(key, [one for path in paths for one in people[path]]) for paths in (forget, teach)
    )
    # Whom an attack measured stands there by the key beside its own roster.
    attacked: dict[str, set[str]] = defaultdict(set)
    for path in sorted(_attacked(config.get("evaluations", {}).values())):
        for name, pseudonym in _by_name(key, _people_of(path, run)).items():
            attacked[name].add(pseudonym)
    removed = _taken_out_of({ANY_ROSTER, *(Path(path).name for path in forget)}, rows)
    since = _taken_out_since(removed, set(forgotten.values()), digest, run)
    found_by = _found_by(run)

    def standing(row: Mapping[str, Any]) -> Standing:
        names = forgotten.keys() & set(row["names"])
        known_as = {row["pseudonym"], *(forgotten[name] for name in names)}
        known_as |= {one for name in row["names"] for one in attacked.get(name, ())}
        found = [won for one, won in found_by.items() if one in known_as]
        return Standing(
            row["pseudonym"],
            row["pseudonym"] in since or bool(names),
            not taught.keys().isdisjoint(row["names"]),
            max(found, default=None),
        )

    return [standing(row) for row in rows]


def _by_name(key: bytes, people: Iterable[Identity]) -> dict[str, str]:
    """As the record hashes names and aliases, whose they are: pseudonyms of the run's rosters,
    which may have another key."""
    return {
        keyed_hash(key, "name", fold(name).encode()): one.pseudonym
        for one in people
        for name in names_of([one])
    }


def _found_by(run: Path) -> dict[str, int]:
    """By pseudonym: prompts of the attack that found them after the run, of several attacks and
    writings of their name the most."""
    found: dict[str, int] = {}
    for row in read_people(run):
        after = row.get("after", {})
        if row["measure"].startswith("identity_inference/") and WON in after:
            won = [after[WON], *after.get(WON_BY, {}).values()]
            found[row["identity"]] = max(*won, found.get(row["identity"], 0))
    return found


def _rosters_of(objectives: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """Of people to forget, and of people to keep or to teach by name."""
    forget: set[str] = set()
    teach: set[str] = set()
    for options in objectives:
        for option, rosters in (("roster", forget), ("replay", teach)):
            if isinstance(path := options.get(option), str):
                rosters.add(path)
        named = options.get("named")
        groups = named.values() if isinstance(named, dict) else ()  # a plugin's may be anything
        # Of no pictures it is not read.
        teach |= {
            one["roster"]
            for one in groups
            if isinstance(one, dict) and "roster" in one and one.get("pictures") != 0
        }
    return forget, teach


def _attacked(evaluations: Iterable[Mapping[str, Any]]) -> set[str]:
    """The rosters of people whom attacks look for."""
    groups = [one.get("groups") for one in evaluations if one["kind"] == "identity_inference"]
    return {roster for one in groups if isinstance(one, dict) for roster in one.values()}


def _people_of(roster: str, run: Path) -> list[Identity]:
    if not Path(roster).is_file():
        raise FileNotFoundError(
            f"roster {roster} of {run} is not there any more; restore it, or call this from the "
            "folder that the run was started in"
        )
    key_there(Path(roster))
    return read_roster(roster, may_be_empty=True)


def _taken_out_of(rosters: set[str], rows: Sequence[dict]) -> list[str]:
    """Pseudonyms, in the order in which they were taken out of the last of these that had them."""
    times = {
        row["pseudonym"]: max(own)
        for row in rows
        if (own := [time for roster, time in removed_at(row).items() if roster in rosters])
    }
    return sorted(times, key=times.__getitem__)


def _taken_out_since(
    removed: Sequence[str], asked: set[str], digest: str | None, run: Path
) -> set[str]:
    """Whom the run was to forget and who was taken out of its rosters after it.

    removed: all who ever were, in their order: they are all from some one on. asked: the pseudonyms
    that are there now; digest: of those that were there when it ran.
    """
    for start in range(len(removed), -1, -1):
        since = set(removed[start:])
        if digest is None or digest_of(asked | since) == digest:  # older runs have none
            return since
    raise ValueError(
        f"the rosters that {run} was to forget are others now than when it ran; restore them"
    )
