"""The forms in which a name could stand in a file without being read as one."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from pathlib import Path
from urllib.parse import quote, quote_plus

from trainer.people.names import fold


def disguises(name: str) -> set[bytes]:
    """As it is, folded, run together, escaped for JSON and URLs, in hex; in small letters."""
    plain = {name.lower(), fold(name), fold(name).replace(" ", "_"), fold(name).replace(" ", "-")}
    plain |= {fold(name).replace(" ", ""), name, name.upper()}  # bytes have no small À
    escaped = {json.dumps(one)[1:-1].lower() for one in plain}
    escaped |= {quote(one).lower() for one in plain} | {quote_plus(one).lower() for one in plain}
    hexes = {one.encode().hex() for one in (name, *plain)}
    return {one.encode().lower() for one in plain | escaped | hexes}


def in_base64(name: str) -> set[bytes]:
    """What of it is the same wherever it begins among other bytes, standard and for URLs."""
    found = set()
    for one in {name, name.lower(), fold(name)}:
        for shift in range(3):
            encoded = base64.b64encode(b"\0" * shift + one.encode())
            # The first and last characters hold bits of the neighbours.
            found.add(encoded.rstrip(b"=")[4 if shift else 0 : -1])
    return found | {one.translate(bytes.maketrans(b"+/", b"-_")) for one in found}


def found_in(path: Path, names: set[str]) -> list[str]:
    """Those of the names that stand in the file in any form, also where it is compressed."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    # Pictures and texts that a page or a tracker holds compressed within.
    content += b"".join(_inflated(content))
    small = content.lower()
    return [
        name
        for name in names
        if any(one in small for one in disguises(name))
        or any(one in content for one in in_base64(name))
    ]


def _inflated(content: bytes) -> list[bytes]:
    """What begins as zlib or gzip does and can be read so, up to a megabyte of each."""
    found, whole = [], memoryview(content)  # a copy of each rest would be gigabytes
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", content):
        kind = 31 if match.group().startswith(b"\x1f") else 15
        try:
            found.append(zlib.decompressobj(kind).decompress(whole[match.start() :], 1_000_000))
        except zlib.error:
            continue
    return found
