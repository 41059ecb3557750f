from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from tests.conftest import write_shard
from tests.trainer.webserver import noise, serving
from trainer.data import cache, remote
from trainer.data.cache import cache_name, cached
from trainer.data.readers import Reading, Share, read_share
from trainer.data.remote import Patience, Unreachable

CONTENT = noise(300_077)
SOON = Patience(seconds=0.3, timeout_seconds=5)
LONG = Patience(seconds=60, timeout_seconds=5)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def nothing_given_up_and_no_long_waits(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(cache, "_GIVEN_UP", set())


@pytest.fixture
def server():
    with serving({"/a/0.tar": CONTENT}) as server:
        yield server


@pytest.fixture
def small_disk(tmp_path):
    """A megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_shard_is_downloaded_once_and_whole(server, tmp_path):
    folder = tmp_path / "new" / "cache"
    path = cached(server.url("/a/0.tar"), str(folder), LONG)
    assert Path(path).read_bytes() == CONTENT
    server.asked.clear()
    assert cached(server.url("/a/0.tar"), str(folder), LONG) == path
    assert not server.asked and os.listdir(folder) == [os.path.basename(path)]


def test_a_name_is_readable_and_has_no_secret_though_each_query_has_its_own():
    names = [
        cache_name(url)
        for url in (
            "https://me:s3cr3t@h/a/00000.tar?key=s3cr3t",
            "https://me:s3cr3t@h/a/00000.tar?key=other",
            "pipe:curl -s 'https://h/b/00000.tar?key=s3cr3t' | cat",
            "s3://b/c/a ü%20b.tar.gz",
            "pipe:../../s3cr3t 'x",
            "https://h/..",
            f"https://h/{'a' * 300}.tar",
        )
    ]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "s3cr3t" in name or "/" in name or len(name) > 140]
    assert {name[:33].strip("0123456789abcdef") for name in names} == {"-"}
    assert [name[33:] for name in names[:4]] == ["00000.tar"] * 3 + ["a_ü_20b.tar.gz"]


def test_a_command_is_kept_too(tmp_path):
    (tmp_path / "0.tar").write_bytes(CONTENT)
    path = cached(f"pipe:cat {tmp_path}/0.tar", str(tmp_path / "cache"), LONG)
    assert Path(path).read_bytes() == CONTENT and path.endswith("-0.tar")


def test_a_shard_without_bytes_is_kept(tmp_path):
    assert Path(cached("pipe:true", str(tmp_path), LONG)).read_bytes() == b""


def keep(url: str, folder: str, answers) -> None:
    answers.put(cached(url, folder, LONG))


def start(url: str, folder: Path, answers):
    process = FORK.Process(target=keep, args=(url, str(folder), answers))
    process.start()
    return process


def test_processes_that_want_the_same_shard_download_it_once(server, tmp_path):
    answers = FORK.SimpleQueue()
    processes = [start(server.url("/a/0.tar"), tmp_path, answers) for _ in range(6)]
    paths = {answers.get() for _ in processes}
    for process in processes:
        process.join()
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == CONTENT
    assert len(server.asked) == 1 and len(os.listdir(tmp_path)) == 1


def test_one_that_was_finished_in_the_meantime_is_not_downloaded_again(server, tmp_path):
    path = cached(server.url("/a/0.tar"), str(tmp_path), LONG)
    server.asked.clear()
    cache._download_if_nobody_does(server.url("/a/0.tar"), path, LONG)
    assert not server.asked and os.listdir(tmp_path) == [os.path.basename(path)]


def test_a_killed_download_is_not_taken_for_whole_and_blocks_nobody(server, tmp_path):
    """Nor if one waits for it, and a third comes later."""
    server.tells_size, server.longest = False, 100_000
    server.silent_from = 200_000
    url, answers = server.url("/a/0.tar"), FORK.SimpleQueue()
    first = start(url, tmp_path, answers)
    while len(server.asked) < 3:
        time.sleep(0.01)
    second = start(url, tmp_path, answers)
    assert [name[-5:] for name in os.listdir(tmp_path)] == [".part"]
    server.silent_from = None
    os.kill(first.pid, signal.SIGKILL)
    path = answers.get()
    assert cached(url, str(tmp_path), LONG) == path
    assert Path(path).read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [os.path.basename(path)]
    first.join()
    second.join()


def test_half_a_file_is_downloaded_anew(server, tmp_path):
    url = server.url("/a/0.tar")
    (tmp_path / f"{cache_name(url)}.part").write_bytes(b"half")
    assert Path(cached(url, str(tmp_path), LONG)).read_bytes() == CONTENT
    assert len(os.listdir(tmp_path)) == 1


def test_a_shard_that_cannot_be_reached_raises_and_leaves_nothing(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(Unreachable, match="404"):
        cached(server.url("/a/0.tar"), str(tmp_path), LONG)
    server.cut_after = 1000
    server.hangs_up = 10_000
    with pytest.raises(Unreachable, match="given up"):
        cached(server.url("/a/0.tar"), str(tmp_path), SOON)
    assert os.listdir(tmp_path) == []


def refused(url: str, folder: Path) -> list[str]:
    """The warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cached(url, str(folder), LONG) is None
    return [str(one.message) for one in caught]


def test_a_full_disk_is_told_of_once_and_left_as_it_was(small_disk):
    (said,) = refused(f"pipe:head -c 3000000 /dev/zero; : {small_disk}/0.tar", small_disk)
    assert said == (
        f"pipe:head ... {small_disk}/0.tar: cannot be kept in {small_disk}: "
        "No space left on device; shards that are not there are streamed, "
        "free some space or name another folder"
    )
    assert os.listdir(small_disk) == []
    assert refused("pipe:echo it would fit", small_disk) == []


def test_a_disk_is_not_filled_up_where_the_size_is_known(server, small_disk, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_BYTES", 10_000)
    server.files["/big.tar"] = noise(2 << 20)
    cached("pipe:head -c 5000 /dev/zero", str(small_disk), LONG)
    (said,) = refused(server.url("/big.tar?key=s3cr3t"), small_disk)
    assert "No space left on device" in said and "s3cr3t" not in said
    assert len(server.asked) <= 2 and len(os.listdir(small_disk)) == 1
    assert cached("pipe:head -c 5000 /dev/zero", str(small_disk), LONG)  # as it is there


def test_a_folder_that_cannot_be_written_is_told_of_once(server, tmp_path):
    (tmp_path / "file").touch()
    (said,) = refused(server.url("/a/0.tar"), tmp_path / "file" / "cache")
    assert "/file/cache: Not a directory; shards that are not there are streamed" in said
    assert not server.asked
    assert refused(server.url("/a/0.tar"), tmp_path / "file" / "cache") == []
    assert refused(server.url("/a/0.tar"), tmp_path / "file" / "other") == []


def test_a_bad_sample_of_a_cached_shard_is_told_of_without_secrets(tmp_path):
    path = write_shard(tmp_path / "0.tar", {"a": {"txt": b"\xff"}, "b": {"txt": "x", "jpg": b""}})
    with serving({"/a/0.tar": path.read_bytes()}) as server:
        url = server.url("/a/0.tar?X-Amz-Signature=secret")
        first, second = read_share(Share(url), 0, Reading(cache=str(tmp_path / "cache")))
    assert first.shard == second.shard == server.url("/a/0.tar")
