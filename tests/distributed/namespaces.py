"""Network namespaces: may this process make them? In a container root often may not."""

from __future__ import annotations

import os
import shutil
import subprocess

NEEDED = "network namespaces need root, iproute2 and the permission"


def are_allowed() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"probe-{os.getpid()}"
    cable = ["link", "add", "eth0", "netns", name, "type", "veth", "peer", "eth1", "netns", name]
    try:
        return all(
            subprocess.run(["ip", *command], capture_output=True).returncode == 0
            for command in (["netns", "add", name], cable)
        )
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
