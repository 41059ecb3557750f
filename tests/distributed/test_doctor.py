"""The doctor on two hosts: two network namespaces, launched as a run is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.distributed import namespaces
from tests.trainer.doctor.test_examination import write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not namespaces.are_allowed(), reason=namespaces.NEEDED),
]
# Trouble on some of the hosts, by the last number of their address; `ip netns exec` gives each its
# own mounts.
AS_PYTHON = """#!/bin/sh
if ip -o address | grep -q "10.77.0.[{numbers}]/"; then
    {trouble}
fi
exec {python} "$@"
"""


def doctor(folder: Path, shards: str, trouble: str, hosts: str = "2") -> tuple[int, str]:
    (folder / "plugins").symlink_to(REPOSITORY / "plugins")
    (folder / "shared").mkdir()
    write_config(folder, shards, output="shared/run")
    python = folder / "python.sh"
    python.write_text(AS_PYTHON.format(numbers=hosts, trouble=trouble, python=sys.executable))
    python.chmod(0o755)
    environment = {
        "PYTHONPATH": str(REPOSITORY), "PYTHON": str(python),
        "LAUNCH_OPTIONS": "--mixed_precision no", "TWO_HOSTS": "examined",
    }  # fmt: skip
    done = subprocess.run(
        [REPOSITORY / "launch/two_hosts.sh", REPOSITORY / "launch/ddp.yaml", "doctor", "run.yaml",
         "--patience", "12"],
        cwd=folder, env=os.environ | environment, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_two_hosts_that_are_well_are_told_so_by_the_first(clean_shards, tmp_path):
    code, told = doctor(tmp_path, clean_shards, trouble=":")
    assert code == 0, told
    assert "[host 0] ok    gloo: 2 processes add up 4 MB in" in told
    assert "the first host's files are seen in" in told
    assert "[host 0] fail" not in told and "[host 1] ok" not in told


def test_a_folder_that_hosts_do_not_share_is_told(clean_shards, tmp_path):
    code, told = doctor(tmp_path, clean_shards, trouble="mount -t tmpfs none shared")
    assert code != 0
    assert "a file of the first host's is not seen in" in told and "else a run cannot" in told
    assert "[host 0] ok    gloo: 2 processes add up" in told


def test_an_interface_that_leads_to_no_other_host_is_told(clean_shards, tmp_path):
    code, told = doctor(tmp_path, clean_shards, trouble="export GLOO_SOCKET_IFNAME=lo", hosts="12")
    assert code != 0
    for process in (0, 1):
        assert f"process {process} cannot all-reduce by gloo" in told
    assert "GLOO_SOCKET_IFNAME is lo: name the interface that leads to the others, of" in told
