"""What starts a run on a cluster: valid by schema, and true to what a run leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.conftest import REPOSITORY, demo_without_attack
from tests.distributed.test_strategies import SMALL
from trainer.system.interruption import EXIT_CODE, MARKER

LAUNCH = REPOSITORY / "launch"
SCRIPT = (LAUNCH / "slurm.sbatch").read_text()
MANIFEST = LAUNCH / "kubernetes.yaml"
SERVICE, JOB = yaml.safe_load_all(MANIFEST.read_text())
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
ENVIRONMENT = {one["name"]: one["value"] for one in CONTAINER["env"]}


@pytest.mark.parametrize("manifest", [SERVICE, JOB], ids=lambda one: one["kind"])
def test_kubernetes_knows_every_field_of_the_manifest(manifest):
    kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_an_unknown_field_would_be_refused():
    wrong = JOB | {"spec": JOB["spec"] | {"paralelism": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_the_pods_of_the_job_find_each_other_by_the_services_name():
    (port,) = SERVICE["spec"]["ports"]
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["selector"] == {
        "batch.kubernetes.io/job-name": JOB["metadata"]["name"]  # a label of the job's own pods
    }
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert ENVIRONMENT["HOST_0"] == f"{JOB['metadata']['name']}-0.{POD['subdomain']}"
    assert f"--main_process_port {port['port']} " in CONTAINER["args"][0]


def test_pods_processes_and_gpus_are_as_many_as_each_other_says():
    hosts = int(ENVIRONMENT["HOSTS"])
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"] == hosts
    gpus = CONTAINER["resources"]["limits"]["nvidia.com/gpu"]
    assert int(ENVIRONMENT["PROCESSES"]) == hosts * gpus


def test_a_pod_that_was_told_to_go_has_time_to_save_and_is_no_failure():
    assert int(ENVIRONMENT["PET_SHUTDOWN_TIMEOUT"]) < POD["terminationGracePeriodSeconds"]
    ignored = [r for r in JOB["spec"]["podFailurePolicy"]["rules"] if r["action"] == "Ignore"]
    assert ignored[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert ignored[1]["onExitCodes"] == {
        "containerName": CONTAINER["name"], "operator": "In", "values": [EXIT_CODE]
    }  # fmt: skip
    assert POD["restartPolicy"] == "Never"  # without which there is no such policy


def test_every_launcher_hands_signals_on_and_looks_for_the_marker_that_a_run_leaves():
    for text in (SCRIPT, MANIFEST.read_text()):
        assert f"/{MARKER}" in text
        assert "PET_SIGNALS_TO_HANDLE" in text and "SIGTERM,SIGINT,SIGUSR1" in text


def test_slurm_is_asked_for_one_launcher_a_node_a_warning_and_another_try():
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT, re.MULTILINE)
    assert len(lines) == SCRIPT.count("\n#SBATCH")  # and sbatch reads no comment behind them
    options = dict(lines)
    assert options["ntasks-per-node"] == "1" and "requeue" in options
    assert options["open-mode"] == "append"  # or a second life overwrites what the first said
    name, _, seconds = options["signal"].partition("@")
    assert name == "USR1"  # not B:USR1, which is for this shell alone
    default = re.search(r"PET_SHUTDOWN_TIMEOUT:-(\d+)", SCRIPT)
    assert default and int(default[1]) < int(seconds)
    header = SCRIPT.partition("#SBATCH")[0]
    assert "To change" in header and "sbatch launch/slurm.sbatch launch/ddp.yaml train" in header


@pytest.mark.parametrize(
    ("own", "arguments", "given", "folder"),
    [
        ("", "train", "", "runs/my"),
        ("", "evaluate", "", "runs/my-evaluate"),
        ("output: 'a b/c'  # a disk of its own", "train steps=4", "", "a b/c"),
        ("output: a/b", "evaluate", "", "runs/my-evaluate"),  # in a/b it trained
        ("output:", "train", "", "runs/my"),
        ("plugins: [x.py]\ndata: {output: no}", "train", "", "runs/my"),
        ("output: a/b", "train output=c steps=4 output=/d/e", "", "/d/e"),
        ("", "evaluate output=c", "", "c"),
        ("output: a/b", "train output=c", "d/e", "d/e"),
    ],
)
def test_on_slurm_a_runs_folder_is_the_one_that_was_asked_for(
    tmp_path, own, arguments, given, folder
):
    (tmp_path / "my.yaml").write_text(f"steps: 4\n{own}\n")
    its_own = SCRIPT[SCRIPT.index("output=runs") : SCRIPT.index("marker=$output")]
    command, *overrides = arguments.split()
    script = f"set -euo pipefail; command={command} config=my.yaml; {its_own} echo $output"
    done = subprocess.run(
        ["bash", "-c", script, "slurm.sbatch", *overrides], cwd=tmp_path, text=True, check=True,
        env=os.environ | {"OUTPUT": given, "PYTHON": sys.executable}, capture_output=True,
    )  # fmt: skip
    assert done.stdout == f"{folder}\n"


def test_slurms_script_says_how_it_is_called_before_it_does_anything():
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch"], capture_output=True, text=True)
    assert done.returncode != 0 and done.stdout == ""
    assert "usage: sbatch" in done.stderr and "ACCELERATE_FILE COMMAND CONFIG" in done.stderr


def test_the_container_takes_only_what_is_there_and_runs_the_tested_python():
    text = (LAUNCH / "Containerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    for source in sum(copied, []):
        assert (REPOSITORY / source).exists(), source
    assert {"trainer", "plugins", "launch", "configs"} < set(sum(copied, []))
    (version,) = re.findall(r"^FROM \S+python:([\d.]+)-", text, re.MULTILINE)
    first = (REPOSITORY / "constraints.txt").read_text().splitlines()[0]
    assert version in first
    assert f"WORKDIR {ENVIRONMENT['TRAIN'].partition('/launch/')[0]}\n" in text


@pytest.mark.slow
def test_the_pods_own_command_leaves_with_the_code_that_is_ignored_and_goes_on(small_world):
    demo_without_attack(small_world, "strategies")
    environment = ENVIRONMENT | {
        "TRAIN": f"{LAUNCH / 'ddp.yaml'} --mixed_precision no -m trainer train "
        f"configs/strategies.yaml {' '.join(SMALL)} steps=100",
        "OUTPUT": "runs/pod", "HOSTS": "1", "PROCESSES": "2", "HOST_0": "127.0.0.1",
        "JOB_COMPLETION_INDEX": "0", "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [*CONTAINER["command"], *CONTAINER["args"]]

    def started() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=small_world, env=os.environ | environment)

    pod = started()
    while not (small_world / "runs/pod/checkpoints/step-00000010").exists():
        assert pod.poll() is None
        time.sleep(0.05)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(120) == EXIT_CODE
    assert int((small_world / "runs/pod" / MARKER).read_text()) < 100
    assert started().wait(240) == 0
    assert (small_world / "runs/pod/results.json").exists()
