"""A bar moves on a terminal; in a log it is lines."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from fcntl import ioctl
from struct import pack
from termios import TIOCSWINSZ

from tests.conftest import REPOSITORY

LOOP = """
from time import sleep
from trainer import progress
for _ in progress(range(40), unit="step"):
    sleep(0.01)
"""


def test_in_a_log_it_is_whole_lines_of_which_the_last_is_the_end():
    done = subprocess.run([sys.executable, "-c", LOOP], cwd=REPOSITORY, stderr=subprocess.PIPE)
    log = done.stderr.decode()
    assert "\r" not in log and log.endswith("\n")
    first, *_, last = log.splitlines()
    assert "0/40" in first and "40/40" in last and "step/s]" in last
    assert len(log.splitlines()) == 2  # the loop is over before there is more to tell


def test_on_a_terminal_it_moves_in_its_line():
    ours, its = pty.openpty()
    ioctl(its, TIOCSWINSZ, pack("HHHH", 24, 80, 0, 0))  # rows and columns, of which it has none
    process = subprocess.Popen([sys.executable, "-c", LOOP], cwd=REPOSITORY, stderr=its)
    os.close(its)
    shown = b""
    with suppress(OSError):  # what Linux says at the end of one
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    assert process.wait() == 0
    assert shown.count(b"\r") > 2 and b"40/40" in shown
