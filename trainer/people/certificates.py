"""A sealed statement for each deletion request: of which model, by which attacks, what was found.

Two files a person: `PSEUDONYM.json`, and beside it its Ed25519 signature (64 bytes) of the bytes as
they are. Whoever has the public key can check it without this program:

    openssl pkeyutl -verify -rawin -pubin -inkey public.pem -sigfile P.json.sig -in P.json
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from trainer.configuration.sections import ModelConfig
from trainer.people.fingerprints import (
    AFTER,
    BEFORE,
    REQUESTS,
    fingerprints,
    requested,
    to_forget,
    weights_before,
    written,
)
from trainer.people.names import fold
from trainer.people.roster import KEY_FILE, names_of, read_roster
from trainer.reports.findings import LIMITS
from trainer.reports.results import Results, path_of, read_results
from trainer.reports.worst_off import read_people
from trainer.system.files import replace
from trainer.system.versions import code_version

FORMAT = "clip-unlearn certificate 2"
FAILED = "failed: it measured nothing"
SIGNATURE = ".sig"  # beside the certificate
NOT_ATTACKED = (
    "not measured alone: no evaluation of single people was configured, had enough pictures of "
    "this person, and was completed; see evaluations"
)


def issue(run: Path, key: Path, into: Path, only: str | None = None) -> int:
    """Write a certificate for each person whom the run was to forget, or for one pseudonym alone.

    Returns how many were written. Raises ValueError and FileNotFoundError.
    """
    signer = _private_key(key)
    results = read_results(run)
    config_bytes = (run / "config.yaml").read_bytes()
    config = yaml.safe_load(config_bytes)
    requests = requested(config)
    if not requests:
        raise ValueError("no objective of the run has a roster: nobody asked to be forgotten")
    if only is not None and only not in requests:
        raise ValueError(
            f"{only} is none of the {len(requests)} people whom {run} was to forget; "
            "give a pseudonym as it stands in people.jsonl"
        )
    model = ModelConfig(**config["model"])
    # Both raise where there are none, which fingerprints would leave out.
    weights_before(model)
    written(run)
    if not results.fingerprints.keys() >= {REQUESTS, AFTER}:
        raise ValueError(
            f"{run} does not say whom it was to forget and what it wrote; run it again"
        )
    found = fingerprints(config, run)
    for what, digest in results.fingerprints.items():
        if found.get(what) != digest:
            raise ValueError(
                f"{run}: the {what.replace('_', ' ')} are others now than when it ran; "
                "certificates are issued with the rosters and weights as it read and wrote them"
            )
    hashes = {"before": found.get(BEFORE), "after": found[AFTER]}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in read_people(run):
        rows.setdefault(row.pop("identity"), []).append(row)
    _refuse_other_pseudonyms(config, rows, [only] if only is not None else sorted(requests))
    shared = {
        "format": FORMAT,
        "issued_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "code": {"run": dict(results.code) or None, "issued": code_version()},
        "model": {"name": model.name, "weights_sha256": hashes},
        "configuration_sha256": hashlib.sha256(config_bytes).hexdigest(),
        "evaluations": _evaluations(config, results),
        "limits": LIMITS,
    }
    into.mkdir(parents=True, exist_ok=True)
    people = [only] if only is not None else sorted(requests)
    for person in people:
        certificate = shared | {"identity": person, "found": rows.get(person, NOT_ATTACKED)}
        _write_sealed(into / f"{person}.json", canonical(certificate), signer)
    return len(people)


def _refuse_other_pseudonyms(
    config: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    people: Sequence[str],
) -> None:
    """Raises ValueError where someone may pass for not attacked who was, by another pseudonym.

    rows: by pseudonym, what the run measured; people: whom certificates are to be issued for.
    """
    missed = set(people) - rows.keys()
    asked = to_forget(config)
    own: dict[str, set[str]] = {}
    for one in asked:
        for name in names_of([one]):
            own.setdefault(fold(name), set()).add(one.pseudonym)
    kinds = {row["measure"].split("/")[0] for ones in rows.values() for row in ones}
    for group, roster in _groups(config, kinds) if missed else ():
        is_there = Path(roster).is_file()
        if not is_there and group != "forget":
            continue
        # Where it is gone: it had people who were to be forgotten, by its name.
        attacked = read_roster(roster) if is_there else asked
        has_other = any(
            missed & (own.get(fold(name), set()) - {one.pseudonym})
            for one in attacked
            for name in names_of([one])
        )
        measured = {who for who, ones in rows.items() if any(r.get("group") == group for r in ones)}
        had_other = measured and measured.isdisjoint(one.pseudonym for one in attacked)
        if has_other or had_other:
            raise ValueError(
                f"group {group} ({roster}) and the requests have other pseudonyms, or had when it "
                "ran, so that who was attacked cannot be told; name each person alike in both, put "
                f"both rosters into one folder, or copy the {KEY_FILE} of one beside the other, "
                "and run again"
            )


def _groups(config: Mapping[str, Any], kinds: Collection[str]) -> Iterator[tuple[str, str]]:
    """Whom evaluations of these kinds measure: a group's name, and its roster."""
    for options in config.get("evaluations", {}).values():
        if options["kind"] in kinds:
            groups = options.get("groups")  # a plugin's may be anything
            yield from groups.items() if isinstance(groups, dict) else ()


def verify(path: Path, public_key: Path) -> dict[str, Any]:
    """The certificate, if its signature is of the key's owner. Raises ValueError."""
    beside = path.with_name(path.name + SIGNATURE)
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there; a certificate is it and its {SIGNATURE}")
    content = path.read_bytes()
    try:
        _public_key(public_key).verify(beside.read_bytes(), content)
    except InvalidSignature:
        raise ValueError(
            f"{path} is not what was signed: it, its signature or the key is another; "
            "ask its issuer for it again"
        ) from None
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is signed, but no certificate of this version: {FORMAT}")
    return found


def canonical(certificate: dict[str, Any]) -> bytes:
    """JSON in one way only: sorted keys, two spaces, UTF-8, a line end."""
    text = json.dumps(certificate, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _evaluations(config: Mapping[str, Any], results: Results) -> dict[str, dict[str, Any]]:
    """What was run and what it gave of everybody together: kinds, their numbers, the measures at
    both moments, or at which it failed. No path, which may tell of people."""
    found: dict[str, dict[str, Any]] = {}
    paths: dict[str, str] = {}
    for name, options in config.get("evaluations", {}).items():
        numbers = {key: one for key, one in options.items() if isinstance(one, int)}
        numbers.pop("every", None)
        found[name] = {"kind": options["kind"], **numbers, "before": {}, "after": {}}
        paths[f"{path_of(name, options['kind'])}/"] = name
    for moment, measures in (("before", results.before), ("after", results.after)):
        for measure, value in measures.items():
            # The longest: a kind without a name of its own begins those of its kind.
            path = max(filter(measure.startswith, paths), key=len, default=None)
            if path and isinstance(value, (int, float)):  # no histogram or curve
                own = found[paths[path]][moment]
                own[measure.removeprefix(path)] = value if math.isfinite(value) else None
        for one in found.values():
            if not one[moment]:
                one[moment] = FAILED
    return found


def _write_sealed(path: Path, content: bytes, signer: Ed25519PrivateKey) -> None:
    """The signature first: a certificate is never there without."""
    signature = signer.sign(content)
    replace(path.with_name(path.name + SIGNATURE), lambda aside: aside.write_bytes(signature))
    replace(path, lambda aside: aside.write_bytes(content))


def _private_key(path: Path) -> Ed25519PrivateKey:
    make = f"make one: openssl genpkey -algorithm ed25519 -out {path}"
    if not path.is_file():
        raise FileNotFoundError(f"key {path} is not there; {make}")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        raise ValueError(
            f"key {path} is encrypted; decrypt it for the time of issuing: "
            f"openssl pkey -in {path} -out KEY"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"key {path} is no private key in PEM; {make}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"key {path} is no Ed25519 key; {make}")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    make = "its owner makes it: openssl pkey -in KEY -pubout"
    if not path.is_file():
        raise FileNotFoundError(f"public key {path} is not there; {make}")
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path} is no public key in PEM; {make}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path} is no Ed25519 public key; {make}")
    return key
