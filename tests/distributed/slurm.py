"""A real Slurm on this machine: its controller and two nodes, as daemons of a test's own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
GRACE_SECONDS = 60
CONFIG = """
ClusterName=forgetting
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its credential is void.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdParameters=config_overrides
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Less than a run's libraries take: a job that asks for no memory is ended when it has more.
DefMemPerCPU=100
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
SchedulerParameters=batch_sched_delay=1,sched_interval=2
InactiveLimit=0
{nodes}
# The second preempts the first.
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime={grace} Default=YES
PartitionName=high Nodes=ALL PriorityTier=10
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def is_installed() -> bool:
    return all(shutil.which(name, path=PATH) for name in PROGRAMS)


@contextmanager
def cluster(folder: Path, nodes: int = 2) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find it. folder: of its own, below 80 letters."""
    host = socket.gethostname().split(".")[0]
    ports = free_ports(1 + nodes)
    lines = [
        f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1 + i]} CPUs=1 "
        "RealMemory=65536"
        for i in range(nodes)
    ]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=f"{host}(127.0.0.1)", ports=ports, folder=folder, nodes="\n".join(lines),
            grace=GRACE_SECONDS,
        )
    )  # fmt: skip
    # Of no use here, but that of this machine may not do; "disabled" is known from 23.02 on.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    commands = [
        ["munged", "-F", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
         f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", f"node{i}"] for i in range(nodes)),
    ]  # fmt: skip
    daemons = []
    try:
        for command in commands:
            path = shutil.which(command[0], path=PATH)
            assert path, command[0]
            with (folder / f"{command[0]}.out").open("a") as told:
                daemons.append(
                    subprocess.Popen(
                        [path, *command[1:]], env=environment, stdout=told, stderr=told
                    )
                )
            time.sleep(0.5)  # munged's socket, the controller's port
        _until_idle(environment, nodes)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _until_idle(environment: dict[str, str], nodes: int) -> None:
    for _ in range(120):
        found = subprocess.run(
            ["sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if found.stdout.strip() == str(nodes):
            return
        time.sleep(0.5)
    raise RuntimeError(f"Slurm's nodes are not idle: {found.stdout}{found.stderr}")
