from __future__ import annotations

import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import FrozenInstanceError
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer

import boto3
import fsspec
import pytest
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

from tests.conftest import REPOSITORY
from tests.trainer.webserver import Server, noise, serve_in_a_process, serving
from trainer.data import remote
from trainer.data.remote import Patience, RemoteFile, Unreachable
from trainer.system.addresses import is_remote, shown, unsigned

KIB = 1024
CONTENT = noise(300 * KIB + 77)
SOON = Patience(seconds=0.3, timeout_seconds=5)
# For a command that first has to start, however busy the machine.
COMMAND = Patience(seconds=5, timeout_seconds=5)
LONG = Patience(seconds=60, timeout_seconds=5)
CHUNK = 64 * KIB
open_remote = partial(RemoteFile, patience=LONG, chunk_bytes=CHUNK)


@pytest.fixture(autouse=True)
def no_proxy_and_no_long_waits(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(remote, "LONGEST_WAIT_SECONDS", 0.1)


@pytest.fixture
def server():
    with serving({"/a.tar": CONTENT, "/b.tar": noise(1000, 1), "/empty.tar": b""}) as server:
        yield server


def read_all(file: RemoteFile, sizes: tuple[int, ...] = (512, 70_000, 1, 10_000)) -> bytes:
    """In steps of these sizes, over and over."""
    pieces, i = [], 0
    while piece := file.read(sizes[i % len(sizes)]):
        assert len(piece) == sizes[i % len(sizes)] or file.read(1) == b""
        pieces.append(piece)
        i += 1
    return b"".join(pieces)


def wait_for_requests(server: Server, count: int) -> None:
    while len(server.asked) < count:
        time.sleep(0.01)


def message_of(url: str, patience: Patience = SOON) -> str:
    """Why it cannot be read; neither that nor its traceback tells more of the address."""
    with pytest.raises(Unreachable) as raised, RemoteFile(url, 0, patience, CHUNK) as file:
        read_all(file)
    message = str(raised.value)
    assert "\n" not in message and message.startswith(f"{shown(url)}: ")
    everything = "".join(traceback.format_exception(raised.value))
    assert "s3cr3t" not in everything
    return message.removeprefix(f"{shown(url)}: ")


# Names


def test_remote_is_what_has_a_scheme_or_is_a_command():
    assert is_remote("s3://a/0.tar") and is_remote("https://a/0.tar") and is_remote("pipe:cat a")
    assert not is_remote("/a/0.tar") and not is_remote("a:b.tar")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://h:80/a/0.tar", "https://h:80/a/0.tar"),
        ("https://me:s3cr3t@h:80/a/0.tar?key=s3cr3t#s3cr3t", "https://h:80/a/0.tar"),
        ("https://s3cr3t@h/0.tar", "https://h/0.tar"),
        ("s3://KEY:sec/s3cr3t@bucket/0.tar", "s3://bucket/0.tar"),
        ("s3://bucket/k@v/0.tar", "s3://bucket/k@v/0.tar"),
        ("https://me:s3cr3t?x@h/0.tar", "https://"),
        ("http://[::1]:80/0.tar?s3cr3t", "http://[::1]:80/0.tar"),
        ("https://h/0.tar?to=me@s3cr3t", "https://h/0.tar"),
        ("pipe:cat /a/0.tar", "pipe:cat ... /a/0.tar"),
        ("pipe:aws s3 cp s3://b/0.tar -", "pipe:aws ... s3://b/0.tar"),
        (
            "pipe:KEY=s3cr3t curl -u me:s3cr3t 'https://me:s3cr3t@h/0.tar?k=s3cr3t' | zcat",
            "pipe:curl ... https://h/0.tar",
        ),
        ("pipe:curl https://h/0.tar -H 'Key: sec/s3cr3t'", "pipe:curl ... https://h/0.tar"),
        ("pipe:get --from=https://h/0.tar?s3cr3t", "pipe:get ... https://h/0.tar"),
        ("pipe:get 's3cr3t", "pipe: ..."),
        ("{https://me:s3cr3t@h,https://me:s3cr3t@i}/0.tar", "{https://h,https://i}/0.tar"),
    ],
)
def test_a_shard_is_shown_without_secrets(url, masked):
    assert shown(url) == masked


def test_patience_does_not_change():
    with pytest.raises(FrozenInstanceError):
        Patience().seconds = 1
    assert Patience() == Patience(seconds=300, timeout_seconds=30)


# http


def test_all_bytes_come_in_ranges_uncompressed_and_in_order(server):
    with open_remote(server.url()) as file:
        assert file.size == len(CONTENT)
        assert read_all(file) == CONTENT
        assert file.tell() == len(CONTENT) and file.read(10) == b""
    assert server.ranges()[0] == f"bytes=0-{CHUNK - 1}" and len(server.asked) == 5
    assert {headers["accept-encoding"] for _, headers in server.asked} == {"identity"}


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("start", [0, 1, CHUNK, 200_001, len(CONTENT), len(CONTENT) + 9])
def test_a_file_is_read_from_a_start_on(server, start, knows_ranges):
    server.knows_ranges = knows_ranges
    with open_remote(server.url(), start) as file:
        assert file.tell() == start
        assert read_all(file) == CONTENT[start:]
        assert file.size == len(CONTENT)


@pytest.mark.parametrize("tells_size", [True, False])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_reading_and_skipping_mix(server, knows_ranges, tells_size):
    server.knows_ranges, server.tells_size = knows_ranges, tells_size
    dice = random.Random(0)
    for _ in range(10):
        with open_remote(server.url(), place := dice.randrange(1000)) as file:
            while place < len(CONTENT):
                skipped, size = dice.randrange(3 * CHUNK), dice.randrange(1, 2 * CHUNK)
                file.skip(skipped)
                assert file.tell() == place + skipped
                assert file.read(size) == CONTENT[place + skipped :][:size]
                place += skipped + size


@pytest.mark.parametrize("tells_size", [True, False])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_the_end_is_found_where_nobody_tells_the_size(server, knows_ranges, tells_size):
    server.files["/round.tar"] = CONTENT[: 2 * CHUNK]
    server.knows_ranges, server.tells_size = knows_ranges, tells_size
    for path, content in server.files.items():
        with open_remote(server.url(path)) as file:
            told = file.size
            assert read_all(file) == content
            assert file.size == len(content) and (told in (None, len(content)))
            assert told is not None or not tells_size


def test_chunks_wholly_skipped_are_not_fetched(server):
    with open_remote(server.url()) as file:
        file.skip(3 * CHUNK)
        assert file.read(10) == CONTENT[3 * CHUNK :][:10]
    assert f"bytes={3 * CHUNK}-{4 * CHUNK - 1}" == server.ranges()[0]
    server.asked.clear()
    with open_remote(server.url()) as file:
        for place in range(0, len(CONTENT), 2 * CHUNK):  # the first read may begin the next chunk
            assert file.read(10) == CONTENT[place : place + 10]
            file.skip(2 * CHUNK - 10)
    assert len(server.asked) <= 4


def test_the_next_chunk_is_fetched_while_one_is_read_and_no_more(server):
    with open_remote(server.url()) as file:
        file.read(1)
        wait_for_requests(server, 2)
        file.read(CHUNK - 1)
        assert server.ranges() == [f"bytes=0-{CHUNK - 1}", f"bytes={CHUNK}-{2 * CHUNK - 1}"]


@pytest.mark.parametrize("place", [CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_skipping_into_and_past_the_chunk_that_was_fetched_ahead(server, place):
    with open_remote(server.url()) as file:
        file.read(1)
        wait_for_requests(server, 2)
        file.skip(place - 1)
        assert file.read(CHUNK) == CONTENT[place:][:CHUNK]


def test_nothing_is_fetched_ahead_where_skipping_led(server):
    with open_remote(server.url()) as file:
        file.skip(CHUNK)
        file.read(1)
        time.sleep(0.1)
        assert len(server.asked) == 1
        file.read(CHUNK)
        wait_for_requests(server, 3)  # it is read in order after all


def test_a_hundred_files_are_read_in_turn_over_a_few_connections(server):
    files = [open_remote(server.url(), start) for start in range(100)]
    for i in range(20):
        for start, file in enumerate(files):
            assert file.read(10_000) == CONTENT[start + i * 10_000 :][:10_000]
    for file in files:
        file.close()
    assert server.connections["opened"] <= remote.READ_AHEAD_THREADS + 1


def test_pythons_own_server_that_ignores_ranges_is_streamed(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with open_remote(f"http://127.0.0.1:{server.server_address[1]}/a.tar", 5) as file:
            assert read_all(file) == CONTENT[5:]
        server.shutdown()


def test_user_and_password_of_an_address_are_used_and_redirects_followed(server):
    server.redirects["/here"] = "/b.tar"
    with RemoteFile(server.url("/here").replace("//", "//me:a%20b@")) as file:
        assert file.read(2000) == noise(1000, 1)
    assert server.asked[0][1]["authorization"] == "Basic bWU6YSBi"
    assert [path for path, _ in server.asked] == ["/here", "/b.tar"]


def test_a_proxy_that_the_environment_names_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:word@127.0.0.1:{server.port}")
    with RemoteFile("http://shards.invalid/b.tar") as file:
        assert file.read(2000) == noise(1000, 1)
    path, headers = server.asked[0]
    assert path == "http://shards.invalid/b.tar"
    assert headers["proxy-authorization"] == "Basic bWU6d29yZA=="


@pytest.mark.parametrize("path", ["/a.tar", "/empty.tar"])
@pytest.mark.parametrize("tells_size", [True, False])
def test_without_patience_what_does_not_fail_is_read(server, path, tells_size):
    server.tells_size = tells_size
    with RemoteFile(server.url(path), 0, Patience(0), CHUNK) as file:
        assert read_all(file) == server.files[path]


# What fails for a while


def test_bodies_that_end_early_lose_no_byte(server):
    server.cut_after = 20_000
    with open_remote(server.url(), 3) as file:
        assert read_all(file) == CONTENT[3:]


def test_a_stream_that_is_cut_again_and_again_comes_from_its_beginning(server):
    server.knows_ranges, server.cut_after = False, CHUNK + 1
    with open_remote(server.url()) as file:
        assert file.read(CHUNK) == CONTENT[:CHUNK]
        server.cut_after = 2 * CHUNK + 1
        assert file.read(CHUNK) == CONTENT[CHUNK:][:CHUNK]
        server.cut_after = None
        assert read_all(file) == CONTENT[2 * CHUNK :]
        assert file.size == len(CONTENT)


def test_ranges_shorter_than_asked_for_are_put_together(server):
    server.longest = 10_000
    with open_remote(server.url()) as file:
        assert read_all(file) == CONTENT


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(server, status):
    server.statuses = [status] * 3
    with open_remote(server.url()) as file:
        assert file.read(10) == CONTENT[:10]
        server.statuses = [status] * 3
        assert read_all(file) == CONTENT[10:]


def test_a_server_that_hangs_up_or_falls_silent_is_asked_again(server):
    server.hangs_up, server.silent = 2, 1
    with RemoteFile(server.url(), 0, Patience(60, 0.3), CHUNK) as file:
        assert file.read(10) == CONTENT[:10]
        server.hangs_up, server.silent = 2, 1
        assert read_all(file) == CONTENT[10:]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_server_killed_and_restarted_loses_no_byte(knows_ranges):
    content = noise(8 << 20)  # more than the system's buffers hold of a stream
    process, port = serve_in_a_process({"/a.tar": content}, knows_ranges=knows_ranges)
    with RemoteFile(f"http://127.0.0.1:{port}/a.tar", patience=LONG) as file:
        found = [file.read(100_000)]
        process.kill()
        process.join()
        later = []

        def restart() -> None:
            time.sleep(0.3)
            files = {"/a.tar": content}
            later.append(serve_in_a_process(files, port, knows_ranges=knows_ranges)[0])

        Thread(target=restart).start()
        found.append(read_all(file, (1 << 20,)))
    later[0].kill()
    later[0].join()
    assert b"".join(found) == content


def test_a_wait_is_told_once_with_the_shard_and_how_long_it_may_take(server, monkeypatch):
    monkeypatch.setattr(remote, "WARN_AFTER_SECONDS", 0)
    server.statuses = [503] * 5
    with warnings.catch_warnings(record=True) as caught, open_remote(server.url() + "?k=s") as file:
        warnings.simplefilter("always")
        assert file.read(10) == CONTENT[:10]
    (said,) = (str(one.message) for one in caught)
    assert re.fullmatch(
        rf"{server.url()}: no byte for \d+ s: the server answers 503 Service Unavailable; "
        r"trying for \d+ s more",
        said,
    )


# What fails for good


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_shard_that_may_not_be_read_is_told_of_at_once(server, status):
    server.statuses = [status]
    message = message_of(server.url().replace("//", "//me:s3cr3t@") + "?k=s3cr3t", LONG)
    assert message.startswith(f"the server answers {status} ")
    assert message.endswith("; see that the address is right, a signed one expires")
    assert len(server.asked) == 1


def test_patience_ends_and_what_happened_is_told(server):
    server.statuses = [503] * 10_000
    assert re.fullmatch(
        r"given up after \d+ s without a byte: the server answers 503 Service Unavailable; "
        "see that it can be read from this machine, then resume",
        message_of(server.url("/a.tar?key=s3cr3t")),
    )
    assert len(server.asked) > 2


def test_a_server_that_is_not_there_is_told_of_without_the_query():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        message = message_of(f"http://me:s3cr3t@127.0.0.1:{port}/0.tar?key=s3cr3t")
    assert "NewConnectionError" in message and "Connection refused" in message
    assert "LocationParseError" in message_of("http://me:s3cr3t@[bad/0.tar", LONG)


def test_bodies_that_end_early_without_a_new_byte_are_given_up(server):
    server.cut_after = 0
    assert "IncompleteRead" in message_of(server.url())


def test_a_range_that_was_not_asked_for_is_not_taken(server):
    server.shift = 1
    assert "another range than was asked for" in message_of(server.url())


@pytest.mark.parametrize("encoding", ["gzip", "br"])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_compressed_answer_is_refused(server, encoding, knows_ranges):
    server.knows_ranges, server.headers = knows_ranges, {"Content-Encoding": encoding}
    message = message_of(server.url(), LONG)
    assert message == f"the server sends it in {encoding}; let it send the file as it is"


@pytest.mark.parametrize(
    "change",
    [{"ETag": '"2"'}, {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}, b"longer", None],
)
def test_a_shard_that_changes_while_it_is_read_is_never_mixed(server, change):
    server.headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    with open_remote(server.url()) as file:
        file.read(2 * CHUNK)
        if isinstance(change, dict):
            server.headers |= change
        elif change:
            server.files["/a.tar"] = CONTENT + change
        else:
            server.files["/a.tar"] = CONTENT[:CHUNK]
        with pytest.raises(Unreachable, match="a.tar: it changed while it was read; leave shards"):
            read_all(file)


def test_a_stream_that_changes_is_never_mixed(server):
    server.knows_ranges, server.cut_after = False, CHUNK
    with open_remote(server.url()) as file:
        file.read(CHUNK)
        server.headers = {"ETag": '"2"'}
        with pytest.raises(Unreachable, match="changed while it was read"):
            file.read(1)


# S3, and whatever else fsspec opens


@pytest.fixture(scope="module")
def s3():
    """A real server's bucket `shards`, empty, by what the environment says. Gives its client."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            by_s3(patch, f"http://127.0.0.1:{port}")
            client = boto3.client("s3")
            client.create_bucket(Bucket="shards")
            yield client
    finally:
        process.kill()
        process.wait()


def by_s3(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    patch.setenv("no_proxy", "127.0.0.1")
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "s3cr3t")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()  # fsspec keeps the endpoint


def read_in_child(url: str) -> None:
    with open_remote(url, 5) as file:
        assert read_all(file) == CONTENT[5:]


def in_a_fork(function, *arguments) -> None:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_s3_is_read_from_any_start_and_skipped_in(s3):
    s3.put_object(Bucket="shards", Key="c/0.tar", Body=CONTENT)
    with open_remote("s3://shards/c/0.tar", 3) as file:
        assert file.size == len(CONTENT)
        assert file.read(100) == CONTENT[3:103]
        file.skip(150_000)
        assert read_all(file) == CONTENT[150_103:]
        assert file.read(1) == b""


def test_s3_is_read_in_a_forked_child_and_on_in_its_parent(s3):
    s3.put_object(Bucket="shards", Key="0.tar", Body=CONTENT)
    with open_remote("s3://shards/0.tar") as file:
        found = file.read(CHUNK)
        in_a_fork(read_in_child, "s3://shards/0.tar")
        assert found + read_all(file) == CONTENT
    in_a_fork(read_in_child, "s3://shards/0.tar")


def test_an_s3_object_that_changes_while_it_is_read_is_never_mixed(s3):
    s3.put_object(Bucket="shards", Key="1.tar", Body=CONTENT)
    with open_remote("s3://shards/1.tar") as file:
        file.read(2 * CHUNK)
        s3.put_object(Bucket="shards", Key="1.tar", Body=CONTENT[::-1])
        with pytest.raises(Unreachable, match="s3://shards/1.tar: it changed while it was read"):
            read_all(file)


def test_an_s3_object_that_is_not_there_is_told_of_at_once(s3):
    s3.put_object(Bucket="shards", Key="folder/0.tar", Body=b"")
    for key, why in [
        ("shards/no.tar", "FileNotFound"),
        ("nowhere/0.tar", "FileNotFound"),
        ("shards/folder", "IsA"),
    ]:
        message = message_of(f"s3://{key}", LONG)
        assert message.startswith(why)
        assert message.endswith("; see that the address is right and may be read")


def test_an_s3_that_forbids_is_told_of_at_once(server, monkeypatch):
    by_s3(monkeypatch, server.url(""))
    server.statuses = [403] * 10
    assert message_of("s3://shards/0.tar", LONG).startswith("PermissionError: ")


def test_an_s3_that_fails_for_a_while_loses_no_byte(server, monkeypatch):
    by_s3(monkeypatch, server.url(""))
    server.files["/shards/0.tar"] = CONTENT
    server.statuses = [503, 500]
    with open_remote("s3://shards/0.tar") as file:
        assert file.read(10) == CONTENT[:10]
        server.statuses, server.hangs_up = [503, 500, 429], 2
        assert file.read(2 * CHUNK) == CONTENT[10:][: 2 * CHUNK]
        server.cut_after = 20_000
        Timer(0.2, setattr, (server, "cut_after", None)).start()
        assert read_all(file) == CONTENT[10 + 2 * CHUNK :]


def test_an_s3_is_asked_once_at_a_time_however_patient_its_library_is(server, monkeypatch):
    by_s3(monkeypatch, server.url(""))
    server.silent = 10
    assert "ReadTimeoutError" in message_of("s3://shards/0.tar", Patience(0, 0.1))
    assert len(server.asked) == 1


def test_an_s3_that_is_not_there_is_given_up(monkeypatch):
    by_s3(monkeypatch, "http://127.0.0.1:9")
    assert "EndpointConnectionError" in message_of("s3://shards/0.tar")


def test_what_fsspec_opens_is_read(tmp_path):
    fsspec.filesystem("memory").pipe("/a/0.tar", CONTENT)
    (tmp_path / "0.tar").write_bytes(CONTENT)
    for url in ("memory://a/0.tar", f"file://{tmp_path}/0.tar"):
        with open_remote(url, 7) as file:
            assert file.size == len(CONTENT)
            assert read_all(file) == CONTENT[7:]


class Quoting(AbstractFileSystem):
    """Tells its address in an error, as some do."""

    def info(self, path, **_):
        raise FileNotFoundError(f"GET 'https://me:s3cr3t@h/{path}?key=s3cr3t' failed\nbadly")


def test_an_address_that_an_error_quotes_is_masked():
    fsspec.register_implementation("quoting", Quoting, clobber=True)
    assert message_of("quoting://a/0.tar", LONG) == (
        "FileNotFoundError: GET 'https://h/a/0.tar' failed badly; "
        "see that the address is right and may be read"
    )


def test_what_fsspec_cannot_open_is_told_of_at_once():
    message = message_of("nothing://s3cr3t@a/0.tar", LONG)
    assert message == ("Protocol not known: nothing; install what reads it, or copy it elsewhere")


# Commands


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / "0.tar"
    path.write_bytes(CONTENT)
    return path


def test_a_command_is_read_from_any_start(shard):
    for start in (0, 10, len(CONTENT), len(CONTENT) + 1):
        with open_remote(f"pipe:cat {shard} | cat", start) as file:
            assert file.size is None or start >= len(CONTENT)
            assert read_all(file) == CONTENT[start:]
            assert file.size == len(CONTENT) and file.read(1) == b""


def test_a_command_that_fails_is_run_again_and_skipped_to_the_place(shard, tmp_path):
    runs = tmp_path / "runs"
    fails = (
        f"echo >> {runs}; [ $(wc -l < {runs}) -gt 3 ] || {{ head -c $((80000 * $(wc -l < {runs}))) "
    )
    command = f"{fails}{shard}; exit 1; }}; [ $(wc -l < {runs}) -le 3 ] || cat {shard}"
    with open_remote(f"pipe:{command}", 100) as file:
        assert read_all(file) == CONTENT[100:]
    assert runs.read_text() == "\n" * 4


def test_a_command_that_fails_for_good_is_told_of(shard):
    message = message_of(f"pipe:cat {shard}; exit 3", COMMAND)
    assert "s without a byte: its command ended with status 3; see that" in message


def test_a_command_that_cannot_be_run_is_told_of_at_once():
    message = message_of("pipe:no-such-command --key s3cr3t 2> /dev/null", LONG)
    assert message == "its command cannot be run (status 127); install it or mend it"


def test_a_command_that_gives_nothing_is_given_up():
    assert "its command gives nothing" in message_of("pipe:: s3cr3t; sleep 1000", SOON)
    message = message_of("pipe:: s3cr3t; exec >&-; sleep 1000", COMMAND)
    assert "its command does not end" in message


def test_closing_ends_all_of_a_command_and_leaves_no_zombie(tmp_path):
    with open_remote(f"pipe:echo $$ > {tmp_path}/pid; sleep 1000 | yes") as file:
        assert file.read(4) == b"y\ny\n"
    group = int((tmp_path / "pid").read_text())
    with pytest.raises(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    while True:  # the shell's own children are collected by the system
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)


# Processes


def test_http_is_read_in_a_forked_child_and_on_in_its_parent(server):
    with open_remote(server.url()) as file:
        found = file.read(CHUNK + 1)
        wait_for_requests(server, 3)
        num_connections = server.connections["opened"]
        in_a_fork(read_in_child, server.url())
        assert server.connections["opened"] > num_connections
        assert found + read_all(file) == CONTENT


def read_a_bit_in_child(url: str, end) -> None:
    with open_remote(url) as file:
        file.read(1)
        assert end.wait(20)


def test_a_forked_child_reads_ahead_as_its_parent_does(server):
    with open_remote(server.url()) as file:
        file.read(1)
        wait_for_requests(server, 2)
    end = multiprocessing.get_context("fork").Event()
    thread = Thread(target=lambda: (wait_for_requests(server, 4), end.set()), daemon=True)
    thread.start()
    in_a_fork(read_a_bit_in_child, server.url(), end)


READS_A_BIT = """
import sys, types
sys.modules["trainer"] = package = types.ModuleType("trainer")  # it would import torch, slowly
package.__path__ = ["trainer"]
from trainer.data.remote import RemoteFile
file = RemoteFile(sys.argv[1], chunk_bytes=1000)
assert len(file.read(10)) == 10
input()
"""


def test_a_chunk_that_nobody_reads_does_not_keep_a_process_from_its_end(server):
    server.silent_from = 1000
    process = subprocess.Popen(
        [sys.executable, "-c", READS_A_BIT, server.url()],
        stdin=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    while len(server.asked) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.communicate(b"\n", timeout=20)  # a request lasts 30 s
    assert process.returncode == 0


def test_closing_does_not_wait_for_the_chunk_that_is_fetched(server):
    server.silent_from = CHUNK
    with RemoteFile(server.url(), 0, Patience(60, 60), CHUNK) as file:
        file.read(1)
        wait_for_requests(server, 2)
    assert server.connections["closed"] == 0


def test_a_signed_address_is_the_same_whatever_its_signature():
    for url in ("https://h/a/0.tar", "s3://b/{0..9}.tar", "pipe:curl -s 'https://h/0.tar' | cat"):
        signed = url.replace(".tar", ".tar?X-Amz-Signature=aa&X-Amz-Expires=9")
        assert signed != url and unsigned(signed) == unsigned(url) == url
    assert unsigned("what?.tar") == "what?.tar"
