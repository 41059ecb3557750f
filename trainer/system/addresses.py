"""Addresses of what lies elsewhere, and how they are told without their secrets."""

from __future__ import annotations

import re
import shlex
from typing import Any


def is_remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def unsigned(url: str) -> str:
    """Without queries: a signed address is another one every day, of the same bytes."""
    return re.sub(r"(\w+://[^\s?#'\"]+)[?#][^\s'\"]*", r"\1", url)


def shown(url: str) -> str:
    """For messages: no user, password or query; of a command its first word and the shard."""
    if not is_remote(url):
        return url
    if not url.startswith("pipe:"):
        scheme, _, rest = url.partition("://")
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
        # Up to an @, also where a slash is in the password: a colon before it leads to no port.
        rest = re.sub(r"^[^/]*@|^(?!\[)[^/@]*:(?!\d*(?:/|$))[^@]*(?:@|$)", "", rest)
        rest = re.sub(r"://\S*@", "://", rest)  # of a further address, as braces hold
        return f"{scheme}://{rest}"
    try:
        words = shlex.split(url.removeprefix("pipe:"))
    except ValueError:  # a quote is missing, and any word may be part of a secret
        words = []
    addresses = [shown(found) for word in words for found in re.findall(r"[a-z]\w*://\S+", word)]
    words = [word for word in words if not re.search(r"[\s=?]", word)]  # as TOKEN=... before it
    shards = addresses or [word for word in words if re.search(r"\.tar[.\w]*$", word)]
    return " ".join(["pipe:" + "".join(words[:1])[:30], "...", *shards[-1:]])[:120]


def masked(value: Any) -> Any:
    """Plain data, each address in it as it is shown."""
    if isinstance(value, dict):
        return {name: masked(one) for name, one in value.items()}
    if isinstance(value, list):
        return [masked(one) for one in value]
    return shown(value) if isinstance(value, str) else value
