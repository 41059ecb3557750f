"""A Python that has imported the heavy libraries already, for tests that start many processes.

`warm_python()` gives an executable to use in place of sys.executable. It asks a server, which
imported them once, for a fork: a process of its own with the arguments, environment, folder and
streams that were given, so that all is as real as before but for the seven seconds of imports.
A signal to the executable goes to that process; where it is killed the process is, too.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from select import select
from typing import NoReturn

MODULES = (
    "accelerate.commands.launch", "deepspeed", "open_clip", "scipy.optimize", "sklearn.metrics",
    "torch._dynamo", "torch.distributed.run", "torch.utils.flop_counter", "trainer.cli",
    "trainer.data.preview", "trainer.doctor.examination", "trainer.planning.dry_run",
    "trainer.train",
    "plugins.contrastive", "plugins.face_probe", "plugins.face_to_neutral", "plugins.fictitious",
    "plugins.identity_inference", "plugins.leakage", "plugins.name_to_person", "plugins.pack",
    "plugins.preserve", "plugins.retrieval", "plugins.similarity", "plugins.text_inference",
    "plugins.zero_shot",
)  # fmt: skip
# What DeepSpeed imports when it begins; of another version they may have other names.
OF_DEEPSPEED = (
    "deepspeed.comm.mori", "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer", "functorch.compile", "torch._inductor.compile_fx",
    "transformers.integrations.deepspeed",
)  # fmt: skip
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LARGEST = 1 << 20  # bytes of a request

# Python without its site packages: it starts in a fiftieth of a second.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
told = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * {largest})
socket.send_fds(server, [told], [0, 1, 2])
child = int(server.recv(100))
for number in {forwarded}:
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int(server.recv(100))
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) in {forwarded}:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
"""


@functools.cache
def warm_python() -> str:
    """The executable. One server for all of pytest's workers, which ends with who started them;
    without any, with this process.
    """
    if tests := os.environ.get("PYTEST_XDIST_TESTRUNUID"):
        holder, folder = os.getppid(), Path(tempfile.gettempdir(), f"warm-python-{tests}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            return client_of_another(folder)
    else:
        holder, folder = os.getpid(), Path(tempfile.mkdtemp(prefix="warm-python-"))
    address, client = str(folder / "socket"), folder / "python"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen(64)
    text = CLIENT.format(
        python=sys.executable, address=address, largest=LARGEST, forwarded=[*map(int, FORWARDED)]
    )
    aside = folder / "client"
    aside.write_text(text)
    aside.chmod(0o700)
    environment = {"DS_ACCELERATOR": "cpu"}
    subprocess.Popen(
        [sys.executable, "-m", "tests.warm_python", str(listening.fileno()), str(holder), folder],
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        pass_fds=(listening.fileno(),),
        start_new_session=True,
    )
    listening.close()
    aside.rename(client)
    return str(client)


def client_of_another(folder: Path) -> str:
    """Of the worker that was first."""
    ends_at = time.monotonic() + 60
    while not (folder / "python").exists():
        assert time.monotonic() < ends_at, f"no warm Python in {folder}"
        time.sleep(0.01)
    return str(folder / "python")


def serve(listening: socket.socket, holder: int, folder: str) -> None:
    """Forks for each who asks, until the holder has ended; returns in the process that has become
    what was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        ready, _, _ = select([listening, holder], [], [])
        if holder in ready:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
        asker, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            os.close(holder)
            keep(asker)
            return
        asker.close()


def keep(asker: socket.socket) -> None:
    """Forks once more, tells how that process ended, ends it with who asked; returns in it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(asker, LARGEST, 3)
    child = os.fork()
    if child == 0:
        os.setsid()  # a signal to its group is one to what it starts, and to nobody else
        asker.close()
        become(*json.loads(request), streams)
        return
    asker.send(b"%d" % child)
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    ended = os.pidfd_open(child)
    ready, _, _ = select([asker, ended], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(OSError):  # it may be gone
        asker.send(b"%d" % status)
    os._exit(0)


def become(
    arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> None:
    """Takes over all that a new process would have been given."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    while arguments[0] == "-u":
        arguments = arguments[1:]
    sys.stdout.reconfigure(line_buffering=True)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = ["", *paths] if arguments[0] in ("-m", "-c") else paths
    sys.argv = arguments
    sys.executable = environment.get("PYTHON_EXEC", sys.executable)


def run() -> None:
    """As python does: `-m MODULE`, `-c CODE` or a file, with their arguments."""
    kind = sys.argv[0]
    if kind == "-m":
        module = sys.argv[1]
        sys.argv = sys.argv[1:]
        sys.modules.pop(module, None)  # it is to run anew, as the main one
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        code = sys.argv[1]
        sys.argv = ["-c", *sys.argv[2:]]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(kind))
        runpy.run_path(kind, run_name="__main__")


def end() -> NoReturn:
    """As Python ends, but that it does not take apart what the server had imported: seconds."""
    status = 0
    try:
        run()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    for name in OF_DEEPSPEED:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each process copies all of it when it looks for garbage
    serve(socket.socket(fileno=int(sys.argv[1])), os.pidfd_open(int(sys.argv[2])), sys.argv[3])
    end()
