"""A real nginx that serves a folder, and can be killed and started again on its port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIG = """
{user}
worker_processes 1;
pid {work}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};
  uwsgi_temp_path {work}; scgi_temp_path {work};
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


class Nginx:
    def __init__(self, folder: Path, work: Path):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        work.mkdir(parents=True, exist_ok=True)
        self._config = work / "nginx.conf"
        # Root's worker would be another user, who may not look into a test's folder.
        user = "user root;" if os.getuid() == 0 else ""
        text = CONFIG.format(work=work, port=self.port, folder=folder, user=user)
        self._config.write_text(text)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert NGINX is not None
        command = [NGINX, "-c", str(self._config), "-g", "daemon off;"]
        self._process = subprocess.Popen(command, start_new_session=True)
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert self._process.poll() is None
            time.sleep(0.05)

    def kill(self) -> None:
        """Master and workers at once, in the middle of whatever they send."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Nginx:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
