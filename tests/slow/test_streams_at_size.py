"""Streams held to what README says of them, at the size that it says."""

from __future__ import annotations

import os
import tarfile
import threading
import time
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.data.test_preview import check_kill, folder, in_folder, launched  # noqa: F401
from tests.trainer.data.test_shards import WHOLE, with_checksum
from tests.trainer.nginx import NGINX, Nginx
from tests.warm_python import warm_python
from trainer import BadSample
from trainer.data.index import open_shard
from trainer.data.readers import Reading, Share, read_share
from trainer.data.remote import Patience
from trainer.data.streams import Dealt, Lane

pytestmark = pytest.mark.slow

STEPS = 200


def test_real_processes_print_the_same_for_any_number_of_them_and_of_workers():
    printed = {}
    for ranks in (1, 2, 4, 8):
        for workers in (0, 1, 3):
            arguments = "--steps", f"{STEPS}", f"data.workers={workers}"
            process = launched(ranks, *arguments, python=warm_python())
            printed[ranks, workers] = process.communicate(timeout=600)[0]
            assert process.returncode == 0
            assert printed[ranks, workers] == printed[1, 0], (ranks, workers)
    assert printed[1, 0].count("\n") == 3 * STEPS


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.integers(1, 300), ranks=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
def test_killed_at_any_moment_it_goes_on_as_if_it_had_not_been(tmp_path_factory, lines, ranks):
    check_kill(tmp_path_factory.mktemp("killed"), lines, ranks)


# 10 GB from a web server

LANES, SHARDS, SAMPLES, PICTURE_BYTES = 4, 100, 400, 250_000


@pytest.fixture(scope="module")
def ten_gigabytes(tmp_path_factory) -> Path:
    """A hundred shards; ten different ones, each under ten names."""
    served = tmp_path_factory.mktemp("served")
    noise = Random(0).randbytes(PICTURE_BYTES + SAMPLES)
    for shard in range(SHARDS // 10):
        with tarfile.open(served / f"{shard:05d}.tar", "w") as tar:
            for i in range(SAMPLES):
                parts = {"jpg": noise[i : i + PICTURE_BYTES], "txt": f"c{shard} {i}".encode()}
                for extension, data in parts.items():
                    entry = tarfile.TarInfo(f"{shard:03}{i:05}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, BytesIO(data))
        for copy in range(1, 10):
            os.link(served / f"{shard:05d}.tar", served / f"{shard + copy * SHARDS // 10:05d}.tar")
    return served


def one_lap(pattern: str, told: list[tuple]) -> None:
    """Of all lanes in turn: what every sample is, and a few of its picture's bytes."""
    dealt = Dealt.of([pattern], LANES, 0)
    reading = Reading(patience=Patience(120))
    lanes = [Lane(dealt, number, 0, 20, reading) for number in range(LANES)]
    for _ in range(SHARDS * SAMPLES // LANES):
        for lane in lanes:
            sample = next(lane)
            data = sample.image_bytes
            told.append((Path(sample.shard).name, sample.key, sample.text, len(data), data[:8]))


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_ten_gigabytes_from_an_nginx_that_is_killed_twice_lose_nothing(
    ten_gigabytes, tmp_path, monkeypatch
):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    names = f"{{00000..{SHARDS - 1:05d}}}.tar"
    size = sum(path.stat().st_size for path in ten_gigabytes.iterdir())
    assert size > 10e9
    expected: list[tuple] = []
    one_lap(f"{ten_gigabytes}/{names}", expected)
    assert len(set(expected)) == SHARDS * SAMPLES
    found: list[tuple] = []
    with Nginx(ten_gigabytes, tmp_path) as nginx:

        def kill_twice() -> None:
            for share in (0.3, 0.7):
                while len(found) < share * len(expected):
                    time.sleep(0.01)
                nginx.kill()
                time.sleep(3)
                nginx.start()

        killer = threading.Thread(target=kill_twice)
        killer.start()
        started_at = time.perf_counter()
        one_lap(f"{nginx.address}/{names}", found)
        seconds = time.perf_counter() - started_at
        killer.join()
    print(f"\n{size / 1e9:.2f} GB in {seconds:.0f} s")
    assert found == expected


# Hostile tars

FUZZED_FOR, IN_A_ROUND = 300, 5_000  # seconds; tars
PIECES = [bytes(512), b"\xff" * 512, WHOLE[:512], WHOLE[1024:1536]]


@pytest.mark.long
def test_no_bytes_of_a_tar_crash_its_reader(tmp_path):
    """For five minutes, other bytes in each round."""
    ends_at = time.perf_counter() + FUZZED_FOR
    rounds = 0
    while time.perf_counter() < ends_at:
        read_damaged(path=tmp_path / "0.tar")
        rounds += 1
    print(f"\n{rounds * IN_A_ROUND:,} damaged tars")


@settings(max_examples=IN_A_ROUND, deadline=None, database=None, derandomize=False)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=3),
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=20),
    mended=st.booleans(),
    kept=st.integers(0, len(WHOLE) + 1536),
)
def read_damaged(path, pieces, changes, mended, kept):
    """Whatever they are: it ends, and what it gives can be asked for or says why not."""
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    data = bytearray(b"".join(pieces)) + data
    if mended:  # so that the change gets past the checksum
        for start in range(0, len(data), 512):
            if data[start + 257 : start + 262] == b"ustar":
                data[start : start + 512] = with_checksum(bytes(data[start : start + 512]))
    path.write_bytes(data[:kept])
    open_shard.cache_clear()
    local, streamed = (
        [told(one) for one in islice(read_share(Share(url), 0, Reading()), 100)]
        for url in (str(path), f"file://{path}")
    )
    assert local == streamed


def told(one) -> tuple:
    if isinstance(one, BadSample):
        return (one.reason,)
    parts = [one.key]
    for part in ("text", "label", "image_bytes"):
        try:
            parts.append(getattr(one, part))
        except BadSample as bad:
            parts.append(bad.reason)
    return tuple(parts)
