"""`clip-unlearn index`: the indexes of many shards, several at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

from trainer.data.captions import LINES, PARQUET
from trainer.data.index import (
    Index,
    index_path,
    is_of,
    load_index,
    make_index,
    make_remote_index,
    save_index,
)
from trainer.data.remote import Patience, RemoteFile
from trainer.data.streams import expand
from trainer.system.addresses import is_remote, shown
from trainer.system.progress_bars import progress

BLOCK = 512  # bytes of a remote shard that are fetched to learn its size


class Indexed(NamedTuple):
    """A shard that has an index now."""

    num_samples: int
    wrong: Counter[str]  # of them, by reason
    is_new: bool


def index_shards(patterns: Sequence[str], folder: str | None, workers: int) -> str:
    """Make those that are missing or of another shard. Returns what was found, in words.

    Raises ValueError and OSError.
    """
    urls = expand(patterns)
    for url in urls:
        if url.partition("?")[0].lower().endswith((*LINES, *PARQUET)):
            raise ValueError(f"{shown(url)} needs no index; name the tars alone")
        if folder is None and is_remote(url):
            raise ValueError(
                f"{shown(url)} lies elsewhere; say --into FOLDER, and set data.index to it"
            )
    if folder:
        os.makedirs(folder, exist_ok=True)
    make = partial(index_shard, folder=folder)
    workers = min(workers, len(urls))
    # Importing this package takes seconds: not worth it in more processes than there are shards.
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        made = pool.map(make, urls)
        found = list(progress(made, total=len(urls), unit="shard", desc="indexing"))
    wrong = sum((one.wrong for one in found), Counter[str]())
    lines = [
        f"{sum(one.num_samples for one in found):,} samples in {len(found):,} shards; "
        f"{sum(one.is_new for one in found):,} indexes are new"
    ]
    lines += [f"  {times:,} cannot be used: {reason}" for reason, times in wrong.most_common()]
    return "\n".join(lines)


def index_shard(url: str, folder: str | None) -> Indexed:
    path = index_path(url, folder)
    assert path is not None
    index = None
    if os.path.exists(path):
        try:
            index = load_index(path)
        except ValueError:
            pass  # damaged, or of an earlier version
        else:
            if not _is_still(index, url):
                index = None
    is_new = index is None
    if index is None:
        index = make_remote_index(url, Patience()) if is_remote(url) else make_index(url)
        save_index(index, path)
    return Indexed(len(index.shard), Counter(index.shard.wrong.values()), is_new)


def _is_still(index: Index, url: str) -> bool:
    """Is the shard what it was? Of a remote one its size is asked for, of a command's output nobody
    knows it."""
    if not is_remote(url):
        return is_of(index, url)
    with RemoteFile(url, 0, Patience(), chunk_bytes=BLOCK) as file:
        return file.size in (None, index.size)
