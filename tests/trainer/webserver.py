"""A real HTTP server of a few files that can be told to misbehave."""

from __future__ import annotations

import multiprocessing
import re
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


class Server(ThreadingHTTPServer):
    """What it is told to do may be changed at any time."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, files: dict[str, bytes], port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.port = self.server_address[1]
        self.files = files  # by path
        self.asked: list[tuple[str, dict[str, str]]] = []  # path and headers (lower case) of each
        self.connections: Counter[str] = Counter()  # "opened", "closed"
        self.knows_ranges = True
        self.tells_size = True
        self.cut_after: int | None = None  # bytes of a body, then it hangs up
        self.longest: int | None = None  # bytes of an answer to a range
        self.statuses: list[int] = []  # to answer first
        self.hangs_up = 0  # times, without a word
        self.silent = 0  # times, for ever
        self.silent_from: int | None = None  # where a range begins there or later
        self.headers: dict[str, str] = {"ETag": '"1"'}
        self.shift = 0  # bytes that ranges are wrong by
        self.redirects: dict[str, str] = {}

    def url(self, path: str = "/a.tar") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def ranges(self) -> list[str]:
        return [headers.get("range", "") for _, headers in self.asked]

    def shutdown_request(self, request) -> None:
        self.connections["closed"] += 1
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms
    server: Server

    def setup(self) -> None:
        self.server.connections["opened"] += 1
        super().setup()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:  # noqa: N802, the library's name
        server = self.server
        server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        path = re.sub(r"^http://[^/]*", "", self.path).partition("?")[0]  # a proxy gets all of it
        if server.hangs_up:
            server.hangs_up -= 1
            self.close_connection = True
            return None
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        is_far = asked and server.silent_from is not None and int(asked[1]) >= server.silent_from
        if server.silent or is_far:
            server.silent -= not is_far
            self.rfile.read(1)  # till the client gives up
            self.close_connection = True
            return None
        if server.statuses:
            return self._answer(server.statuses.pop(0), {}, b"not now")
        if target := server.redirects.get(path):
            return self._answer(302, {"Location": target}, b"")
        content = server.files.get(path)
        if content is None:
            return self._answer(404, {}, b"no such file")
        if not asked or not server.knows_ranges:
            return self._answer(200, server.headers, content)
        start = int(asked[1]) + server.shift
        total = len(content) if server.tells_size else "*"
        if start >= len(content):
            return self._answer(416, {"Content-Range": f"bytes */{total}"}, b"")
        end = min(int(asked[2]) + 1, len(content), start + (server.longest or 1 << 30))
        told = {"Content-Range": f"bytes {start}-{end - 1}/{total}"}
        return self._answer(206, server.headers | told, content[start:end])

    do_HEAD = do_GET  # noqa: N815, the library's name

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        server = self.server
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 200 or server.tells_size:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        if server.cut_after is not None and len(body) > server.cut_after:
            body = body[: server.cut_after]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(files: dict[str, bytes]):
    """In a thread. Gives the Server."""
    with Server(files) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def serve_in_a_process(files: dict[str, bytes], port: int = 0, knows_ranges: bool = True):
    """Gives the process, to be killed, and its port."""
    server = Server(files, port)
    server.knows_ranges = knows_ranges
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    server.socket.close()
    return process, server.port
