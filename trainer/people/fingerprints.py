"""Whom a run was to forget, what it began with and what it wrote: by digests.

The run keeps them in its results; who certifies it later sees by them that these are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained

from trainer.configuration.sections import ModelConfig
from trainer.models.weights import first_line
from trainer.models.zoo import name_of, weights_of
from trainer.people.roster import Identity, read_roster
from trainer.system.files import sha256_of

REQUESTS, BEFORE, AFTER = "requests", "weights_before", "weights_after"


def fingerprints(config: Mapping[str, Any], run: Path) -> dict[str, str]:
    """Of those that there are. config: a run's, resolved."""
    found = {}
    with suppress(ValueError, OSError):
        if people := requested(config):
            found[REQUESTS] = digest_of(people)
    with suppress(ValueError, OSError):
        if before := weights_before(ModelConfig(**config["model"])):
            found[BEFORE] = sha256_of(before)
    with suppress(ValueError, OSError):
        found[AFTER] = sha256_of(written(run))
    return found


def digest_of(people: Iterable[str]) -> str:
    """Of pseudonyms, in any order."""
    return hashlib.sha256("\n".join(sorted(people)).encode()).hexdigest()


def requested(config: Mapping[str, Any]) -> set[str]:
    """The pseudonyms of the people in the rosters of a run's objectives, as they are now."""
    return {one.pseudonym for one in to_forget(config)}


def to_forget(config: Mapping[str, Any]) -> list[Identity]:
    """Someone of several rosters as often; where these have other keys, by other pseudonyms."""
    named = [one.get("roster") for one in config["objectives"].values()]
    rosters = {one for one in named if isinstance(one, str)}
    return [one for path in sorted(rosters) for one in read_roster(path, may_be_empty=True)]


def weights_before(model: ModelConfig) -> Path | None:
    """None where they were random. Raises ValueError where they are out of reach."""
    name = name_of(model)
    tag, path = weights_of(model, name)
    if tag is None:
        return path
    try:
        return Path(download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
    except Exception as error:  # not in the cache, and no network
        raise ValueError(
            f"the weights {tag} of {model.name} are not here, nor could they be fetched: "
            f"{first_line(error)[:300]}; issue certificates where the run's model can be loaded"
        ) from error


def written(run: Path) -> Path:
    """The weights that a run exported. Raises FileNotFoundError."""
    files = sorted((run / "model").glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{run / 'model'} holds no weights; certificates are of runs that trained a model"
        )
    return files[0]
