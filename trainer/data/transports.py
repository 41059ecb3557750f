"""Where a remote file's bytes come from: http(s), a shell's output, whatever fsspec opens.

One try each: trainer/data/remote.py tries again.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, Protocol
from urllib.parse import unquote

import fsspec.config
import urllib3
from fsspec.core import url_to_fs
from urllib3.util import Retry, make_headers, parse_url

PIECE_BYTES = 1 << 16  # at most this much is lost where a connection breaks
MAX_IDLE_CONNECTIONS = 128  # to one server
REDIRECTS = Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0)
CHANGED = (
    "it changed while it was read; leave shards as they are while they are in use, then resume"
)


class Hopeless(Exception):
    """It is no use to try again. Tells why, and what to do; without the address."""


class Transport(Protocol):
    size: int | None  # bytes, once it is known
    ranged: bool  # whether any place can be asked for

    def add(self, data: bytearray, at: int, end: int) -> None:
        """Appends the bytes from `at` up to `end`, or as many as come before it fails.

        Called by one thread at a time, for places that lie ever later; what was appended is not
        asked for again. Raises Hopeless, or any other Exception.
        """

    def close(self) -> None:
        """May be called twice, and before anything was read."""


def open_transport(url: str, timeout_seconds: float, silent_seconds: float) -> Transport:
    """silent_seconds: that a command may take, which has no requests to time."""
    if url.startswith("pipe:"):
        return Pipe(url.removeprefix("pipe:"), silent_seconds)
    if url.lower().startswith(("http://", "https://")):
        return Http(url, timeout_seconds)
    return Fsspec(url, timeout_seconds)


class Http:
    """By ranges. A server that answers with the whole file is streamed, from its beginning.

    Then to skip is to download, and where it hangs up, all that was read comes again.
    """

    def __init__(self, url: str, timeout_seconds: float):
        self.size: int | None = None
        self.ranged = True
        self._url = url
        self._timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
        self._told: dict[str, str] = {}  # by the first answers, of the file
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._position = 0  # in the file, of the answer's next byte

    def add(self, data: bytearray, at: int, end: int) -> None:
        if self._answer is None:
            self._answer = self._ask(at, end)
            self.ranged = self._answer.status != 200
            self._position = at if self.ranged else 0
        try:
            if self._answer.status != 416:
                self._position = _read_on(self._answer.read, self._position, data, at, end)
        except BaseException:
            self.close()
            raise
        if self._position < end and self.size is None and not self.ranged:
            self.size = self._position
        if self._position < end or self.ranged:
            self.close()

    def _ask(self, at: int, end: int) -> urllib3.BaseHTTPResponse:
        address = parse_url(self._url)
        proxy = urllib.request.getproxies().get(address.scheme or "")
        if proxy and urllib.request.proxy_bypass(address.host or ""):
            proxy = None
        answer = _connections(os.getpid(), proxy).request(
            "GET",
            self._url,
            headers={
                **make_headers(basic_auth=unquote(address.auth) if address.auth else None),
                "Range": f"bytes={at}-{end - 1}",
                "Accept-Encoding": "identity",
            },
            timeout=self._timeout,
            retries=REDIRECTS,
            preload_content=False,
            decode_content=False,
        )
        try:
            self._check(answer, at)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check(self, answer: urllib3.BaseHTTPResponse, at: int) -> None:
        status, headers = answer.status, answer.headers
        if status not in (200, 206, 416):
            why = f"the server answers {status} {answer.reason or ''}".rstrip()
            if status in (408, 429) or status >= 500:
                raise OSError(why)
            raise Hopeless(f"{why}; see that the address is right, a signed one expires")
        place = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d*)", headers.get("Content-Range", ""))
        if status == 416:  # the end was not known
            self._compare({"size": place[2] if place and place[2] else str(at)})
            return
        if status == 206 and (not place or place[1] != str(at)):
            raise OSError("the server answers with another range than was asked for")
        if (encoding := headers.get("Content-Encoding", "identity").lower()) != "identity":
            raise Hopeless(f"the server sends it in {encoding[:20]}; let it send the file as it is")
        size = place[2] if status == 206 and place else headers.get("Content-Length", "")
        told = {name: headers.get(name, "") for name in ("ETag", "Last-Modified")}
        self._compare({**told, "size": size})

    def _compare(self, told: dict[str, str]) -> None:
        told = {name: value for name, value in told.items() if value}
        if any(self._told.get(name, value) != value for name, value in told.items()):
            raise Hopeless(CHANGED)
        self._told |= told
        self.size = int(told["size"]) if "size" in told else self.size

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()  # one that was read to its end has given its connection back
            self._answer = None


@cache
def _connections(pid: int, proxy: str | None) -> urllib3.PoolManager:
    """By process: a forked child must not talk over its parent's."""
    if proxy is None:
        return urllib3.PoolManager(maxsize=MAX_IDLE_CONNECTIONS)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    auth = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=unquote(auth)) if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, maxsize=MAX_IDLE_CONNECTIONS)


# Kept: s3fs closes one that is dropped, and a forked child waits for a thread it has not inherited.
_FILESYSTEMS: set[Any] = set()


class Fsspec:
    ranged = True

    def __init__(self, url: str, timeout_seconds: float):
        self.size: int | None = None
        self._url = url
        self._told: tuple[object, ...] | None = None  # at first, of the file
        self._options: dict[str, Any] = {}
        if url.startswith(("s3://", "s3a://")):
            ours = {"connect_timeout": timeout_seconds, "read_timeout": timeout_seconds}
            given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            # Else botocore and s3fs try again by themselves, for longer than we may want to.
            config = {**given, **ours, "retries": {"max_attempts": 0}}
            self._options = {"config_kwargs": config}

    def add(self, data: bytearray, at: int, end: int) -> None:
        filesystem, path = self._filesystem()
        if self._told is None:
            self._compare(filesystem.info(path))
        end = end if self.size is None else min(end, self.size)
        if at >= end:
            return
        piece = filesystem.cat_file(path, start=at, end=end)
        # Bytes come without an ETag. If it is the first one still, they are of that file.
        self._compare(filesystem.info(path))
        data += piece
        if self.size is None and len(piece) < end - at:
            self.size = at + len(piece)

    def _filesystem(self) -> tuple[Any, str]:
        """fsspec keeps it for us, and makes a forked child its own."""
        try:
            filesystem, path = url_to_fs(self._url, **self._options)
        except (ImportError, ValueError) as error:
            raise Hopeless(f"{error}; install what reads it, or copy it elsewhere") from None
        if self._options:
            filesystem.retries = 1
        _FILESYSTEMS.add(filesystem)
        return filesystem, path

    def _compare(self, info: dict[str, Any]) -> None:
        if info.get("type") == "directory":
            raise IsADirectoryError("it is a folder")
        told = tuple(info.get(name) for name in ("size", "ETag", "etag", "mtime", "created"))
        if self._told not in (None, told):
            raise Hopeless(CHANGED)
        self._told, self.size = told, info.get("size")

    def close(self) -> None:
        pass


class Pipe:
    """A shell's output. Where the command fails it is run again, from its beginning."""

    ranged = False

    def __init__(self, command: str, silent_seconds: float):
        self.size: int | None = None
        self._command = command
        self._silent_seconds = silent_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._position = 0

    def add(self, data: bytearray, at: int, end: int) -> None:
        if self._process is None:
            # A session of its own: to end all of a pipeline at once.
            self._process = subprocess.Popen(
                self._command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
            self._position = 0
        read = partial(self._read, self._process)
        try:
            self._position = _read_on(read, self._position, data, at, end)
            if self._position < end:
                self._check_end(self._process)
                self.size = self._position
                self.close()
        except BaseException:
            self.close()
            raise

    def _read(self, process: subprocess.Popen[bytes], size: int) -> bytes:
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout)
        if not poll.poll(1000 * self._silent_seconds):
            raise OSError("its command gives nothing")
        return os.read(process.stdout.fileno(), size)

    def _check_end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            status = process.wait(self._silent_seconds)
        except subprocess.TimeoutExpired:  # its own words tell the command
            raise OSError("its command does not end") from None
        if status in (126, 127):
            raise Hopeless(f"its command cannot be run (status {status}); install it or mend it")
        if status:
            raise OSError(f"its command ended with status {status}")

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdout is not None
            process.stdout.close()
            if process.returncode is None:  # else its number may be another's by now
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read_on(
    read: Callable[[int], bytes], position: int, data: bytearray, at: int, end: int
) -> int:
    """Of a stream that stands at `position`: leaves out what comes before `at`, appends what comes
    up to `end`. Returns where it stands then, which is before `end` where the stream has ended."""
    while position < end:
        piece = read(min(PIECE_BYTES, (at if position < at else end) - position))
        if not piece:
            break
        if position >= at:
            data += piece
        position += len(piece)
    return position
