"""The order of the samples is the same wherever the shards lie."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path

import pytest

from tests.conftest import picture, write_shard
from tests.trainer.data.test_remote import s3  # noqa: F401
from tests.trainer.nginx import NGINX, Nginx
from tests.trainer.webserver import serving
from trainer import BadSample
from trainer.data import remote as remote_of
from trainer.data.index import CHANGED
from trainer.data.indexing import index_shards
from trainer.data.readers import Reading, Share, read_share
from trainer.data.remote import Patience
from trainer.data.streams import Dealt, Lane

LANES = 3
DRAWN = 60  # of each lane: more than a lap


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four shards; one has a bad entry, one was cut."""
    folder = tmp_path_factory.mktemp("order")
    for shard in range(4):
        samples = {
            f"{shard}{i:02}": {"jpg": picture(shard, i), "json": "{}", "txt": f"c{shard} {i}"}
            for i in range(12 + shard)
        }
        if shard == 1:
            samples |= {"../out": {"txt": "x"}, "100": {"txt": "again"}}
        write_shard(folder / f"{shard}.tar", samples)
    with open(folder / "3.tar", "r+b") as file:
        file.truncate(24_000)
    return folder


def order(pattern: str, reading: Reading, resume_at: int | None = None) -> list[str]:
    """Of each lane the keys and what was wrong; resumed at a sample, or in one go."""
    dealt = Dealt.of([pattern], LANES, 0)
    told = []
    for number in range(LANES):
        lane = Lane(dealt, number, 0, 5, reading)
        found = list(islice(lane, resume_at or DRAWN))
        if resume_at is not None:
            found += islice(Lane(dealt, number, 0, 5, reading, lane.state), DRAWN - resume_at)
        for one in found:
            if isinstance(one, BadSample):
                told.append(one.reason)
            else:
                told.append(f"{one.key} {one.text} {len(one.image_bytes or b'')}")
    return told


@pytest.fixture(scope="module")
def from_disk(folder) -> list[str]:
    return order(f"{folder}/{{0..3}}.tar", Reading())


@pytest.fixture
def address(folder):
    with serving({f"/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}) as server:
        yield f"http://127.0.0.1:{server.port}/{{0..3}}.tar"


@pytest.mark.parametrize("resume_at", [None, 1, 17, 44])
def test_from_disk_with_an_index_or_without(folder, from_disk, tmp_path, resume_at):
    pattern = f"{folder}/{{0..3}}.tar"
    assert order(pattern, Reading(), resume_at) == from_disk
    index_shards([pattern], str(tmp_path), 1)
    assert order(pattern, Reading(index=str(tmp_path)), resume_at) == from_disk


@pytest.mark.parametrize("resume_at", [None, 17])
@pytest.mark.parametrize("how", ["streamed", "indexed", "cached", "indexed and cached"])
def test_from_a_web_server(address, from_disk, tmp_path, monkeypatch, how, resume_at):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    if "indexed" in how:
        index_shards([address], str(tmp_path / "index"), 1)
    reading = Reading(
        index=str(tmp_path / "index") if "indexed" in how else None,
        cache=str(tmp_path / "cache") if "cached" in how else None,
    )
    assert order(address, reading, resume_at) == from_disk


def test_a_remote_shard_of_another_size_is_indexed_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    first, second = ((folder / f"{number}.tar").read_bytes() for number in (0, 1))
    assert len(first) != len(second)
    with serving({"/0.tar": first}) as server:
        told = [index_shards([server.url("/0.tar")], str(tmp_path), 1) for _ in range(2)]
        server.files["/0.tar"] = second
        told += [index_shards([server.url("/0.tar")], str(tmp_path), 1) for _ in range(2)]
    new = [one.splitlines()[0].rpartition("; ")[2] for one in told]
    assert new == [f"{count} indexes are new" for count in (1, 0, 1, 0)]


def test_a_remote_shard_of_the_same_size_is_noticed_by_its_headers(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    texts = ["a red hat", "a man on a horse"]
    one, other = (
        write_shard(tmp_path / f"{n}.tar", {f"{i}": {"txt": t} for i, t in enumerate(texts[::n])})
        for n in (1, -1)
    )
    assert one.stat().st_size == other.stat().st_size
    with serving({"/a.tar": one.read_bytes()}) as server:
        address = server.url("/a.tar")
        index_shards([address], str(tmp_path), 1)
        reading = Reading(with_pictures=False, index=str(tmp_path))
        assert [one.text for one in read_share(Share(address), 0, reading)] == texts
        server.files["/a.tar"] = other.read_bytes()
        assert [one.reason for one in read_share(Share(address), 0, reading)] == [CHANGED] * 2


def test_captions_alone_are_the_same_from_a_web_server(address, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    local = order(f"{folder}/{{0..3}}.tar", Reading(with_pictures=False))
    index_shards([address], str(tmp_path), 1)
    for index in (None, str(tmp_path)):
        found = order(address, Reading(with_pictures=False, index=index))
        assert [one.rpartition(" ")[0] for one in found] == [
            one.rpartition(" ")[0] for one in local
        ]


def test_from_a_command(folder, from_disk):
    assert order(f"pipe:cat {folder}/{{0..3}}.tar", Reading()) == from_disk


def test_from_an_s3_server(folder, from_disk, s3, tmp_path):  # noqa: F811
    for path in folder.glob("*.tar"):
        s3.put_object(Bucket="shards", Key=f"order/{path.name}", Body=path.read_bytes())
    address = "s3://shards/order/{0..3}.tar"
    assert order(address, Reading()) == from_disk
    assert order(address, Reading(), 17) == from_disk
    assert order(address, Reading(cache=str(tmp_path / "cache"))) == from_disk
    index_shards([address], str(tmp_path / "index"), 1)
    assert order(address, Reading(index=str(tmp_path / "index")), 17) == from_disk


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_from_an_nginx_that_is_killed_and_restarted_twice(folder, from_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote_of, "CHUNK_BYTES", 2048)
    monkeypatch.setattr(remote_of.RemoteFile.__init__, "__defaults__", (0, Patience(60), 2048))
    stopped = threading.Event()

    def kill_twice(nginx: Nginx) -> None:
        for _ in range(2):
            time.sleep(0.3)
            nginx.kill()
            time.sleep(0.3)
            nginx.start()
        stopped.set()

    with Nginx(folder, tmp_path / "nginx") as nginx:
        killer = threading.Thread(target=kill_twice, args=(nginx,))
        killer.start()
        num_reads = 0
        while not stopped.is_set() or num_reads == 0:
            assert order(f"{nginx.address}/{{0..3}}.tar", Reading(patience=Patience(60))) == (
                from_disk
            )
            num_reads += 1
        killer.join()
