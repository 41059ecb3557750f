"""The doctor, alone and with several processes that really meet, or do not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from tests.conftest import REPOSITORY, TINY
from tests.warm_python import warm_python
from trainer.configuration.config import Config, load_config
from trainer.data.skips import Skips
from trainer.doctor.examination import examine, run_bytes, weightless
from trainer.runs.checkpoint import Checkpoints
from trainer.runs.claim import Claim
from trainer.strategies.spread import Spread


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def write_config(folder: Path, shards: str, **changes) -> Path:
    config = {
        "model": {"name": TINY},
        "data": {"shards": shards, "lanes": 8},
        "objectives": {"keep": {"kind": "preserve", "batch_size": 8}},
        "optimizer": {"lr": 1e-4},
        "steps": 10,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(config | changes))
    return path


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    (tmp_path / "plugins").symlink_to(REPOSITORY / "plugins")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_is_looked_at_without_a_configuration(capsys):
    assert examine(None, [], 1.0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "warn") for line in lines)
    for what in ("torch 2.", "/dev/shm", "files", "a run of ViT-L/14 takes about"):
        assert any(what in line for line in lines), what


def test_a_launch_that_the_run_would_refuse_is_told(clean_shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    config = write_config(tmp_path, clean_shards, optimizer={"lr": 1e-4, "anchor": 0.05})
    assert examine(config, [], 1.0) == 1
    assert "optimizer.anchor does not go with fp16" in capsys.readouterr().out


def test_a_configuration_that_can_run_is_told_with_its_shards(clean_shards, tmp_path, capsys):
    before = set(tmp_path.iterdir())
    assert examine(write_config(tmp_path, clean_shards), [], 1.0) == 0
    told = capsys.readouterr().out
    assert "3 shards from" in told and "the configuration is valid" in told
    file = REPOSITORY / "plugins/fictitious/clip/open_clip_model.safetensors"
    values = sum(tensor.numel() for tensor in load_file(file).values())
    # Of 4 bytes: 3 in each of 3 checkpoints, 1 in the model.
    assert f"a run takes about {40 * values / 1e6:.1f} MB" in told
    assert set(tmp_path.iterdir()) - before == {tmp_path / "run.yaml"}


def test_mistakes_of_a_configuration_are_findings_a_line_each(clean_shards, tmp_path, capsys):
    path = write_config(tmp_path, clean_shards, steps=-5, seed=-1)
    assert examine(path, ["optimizer.lr=0"], 1.0) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert len(lines) == 3
    assert lines[0] == f"fail  optimizer.lr: found 0; must be greater than 0; change {path}"


def test_what_a_run_would_stumble_over_is_told_with_its_mend(clean_shards, tmp_path, capsys):
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    (tmp_path / "cut.tar").write_bytes(
        Path(clean_shards.replace("{00000..00002}", "00000")).read_bytes()[:700]
    )
    keep = {"kind": "preserve", "batch_size": 8}
    objectives = {
        "keep": keep | {"shards": ["empty.tar", "cut.tar"]},
        "more": keep | {"shards": ["not-there-{0..3}.tar"]},
    }
    path = write_config(tmp_path, clean_shards, objectives=objectives, model={"name": "ViT-B-33"})
    assert examine(path, [], 1.0) == 1
    told = capsys.readouterr().out
    assert "warn  empty.tar holds no sample" in told
    assert "warn  the first sample of cut.tar is of no use: shard cut off or damaged" in told
    assert "fail  shard not-there-0.tar is not there (4 of 4 are missing)" in told
    assert "fail  model.name ViT-B-33 is no architecture of open_clip's" in told


def test_what_a_run_will_write_is_known_of_a_tag_as_well(clean_shards, tmp_path):
    """Of L/14's text tower, 124 million values: three checkpoints of 12 bytes each, then all 428
    million in float32."""
    model = {"name": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"}
    keep = {"kind": "preserve", "batch_size": 8, "towers": ["text"]}
    path = write_config(tmp_path, clean_shards, objectives={"keep": keep}, model=model)
    config = load_config(path)
    clip = weightless(config)
    assert run_bytes(config, clip) == pytest.approx(3 * 12 * 123.7e6 + 4 * 427.6e6, rel=0.01)
    once = load_config(path, ["checkpoint.every=null", "export.dtype=float16"])
    assert run_bytes(once, clip) == pytest.approx(12 * 123.7e6 + 2 * 427.6e6, rel=0.01)


def test_shared_memory_is_counted_as_the_configuration_takes_it(clean_shards, tmp_path, capsys):
    """Six slots of 64 pictures for each worker, or as many more as its share of a step needs."""
    path = write_config(tmp_path, clean_shards)
    slots = 6 * 64 * 64 * 64 * 3
    for options, count in (([], 2), (["objectives.keep.batch_size=520", "data.workers=4"], 4 * 3)):
        examine(path, options, 1.0)
        assert f"processes may want {count * slots / 1e6:.1f} MB" in capsys.readouterr().out
    for without in ("data.workers=0", "objectives.keep.towers=[text]"):
        examine(path, [without], 1.0)
        assert "may want" not in capsys.readouterr().out


def test_a_frozen_name_that_is_not_there_is_told(clean_shards, tmp_path, capsys):
    model = {"name": "ViT-B-32", "random_weights": True, "freeze": ["text.tokens"]}
    path = write_config(tmp_path, clean_shards, model=model)
    assert examine(path, [], 1.0) == 1
    assert "fail  " in (told := capsys.readouterr().out) and "text.tokens" in told


def test_a_folder_that_is_no_runs_is_told(clean_shards, tmp_path, capsys):
    path = write_config(tmp_path, clean_shards)
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/letter.txt").touch()
    assert examine(path, [], 1.0) == 1
    assert "fail  output: runs/run is not empty and no run's" in capsys.readouterr().out


def cut_off(config: Config, steps: int) -> None:
    """Its folder as a run leaves it that saved after each of so many steps."""
    claim = Claim(config, True, print)
    assert claim.made_or_refused() is None
    claim.end()
    weight = nn.Parameter(torch.ones(2))
    spread = Spread({"weight": weight}, SimpleNamespace(optimizer=torch.optim.AdamW([weight])))
    folder = config.output / "checkpoints"
    saves = Checkpoints(folder, config.checkpoint, spread, Accelerator(cpu=True), "", None)
    for step in range(1, steps + 1):
        saves.save(step, {}, {}, {}, Skips(), [])
        saves.wait()


def test_of_a_run_that_goes_on_what_is_there_takes_no_room_and_other_people_are_told(
    clean_shards, tmp_path, capsys
):
    roster = tmp_path / "asked.csv"
    roster.write_text("name\nZebulon Quimby\n")
    objectives = {
        "keep": {"kind": "preserve", "batch_size": 8},
        "names": {"kind": "name_to_person", "batch_size": 8, "roster": str(roster)},
    }
    path = write_config(tmp_path, clean_shards, objectives=objectives)
    cut_off(load_config(path), steps=3)
    assert examine(path, [], 1.0) == 0
    told = capsys.readouterr().out
    file = REPOSITORY / "plugins/fictitious/clip/open_clip_model.safetensors"
    values = sum(tensor.numel() for tensor in load_file(file).values())
    # Of 4 bytes: 3 in the one checkpoint beside the 2 that are there, 1 in the model.
    assert "ok    runs/run goes on after step 3" in told
    assert f"a run takes about {16 * values / 1e6:.1f} MB" in told
    roster.write_text("name\nXimena Vandervoort\n")
    assert examine(path, [], 1.0) == 1
    told = capsys.readouterr().out
    assert "fail  runs/run: other people are to be forgotten now" in told and "Ximena" not in told
    assert examine(path, ["checkpoint.resume=never"], 1.0) == 0


def test_muon_without_a_matrix_to_move_is_told(clean_shards, tmp_path, capsys):
    model = {"name": TINY, "freeze": ["*weight"]}
    optimizer = {"lr": 1e-4, "kind": "muon"}
    path = write_config(tmp_path, clean_shards, model=model, optimizer=optimizer)
    assert examine(path, [], 1.0) == 1
    assert "fail  optimizer.kind=muon moves the matrices" in capsys.readouterr().out


HOLDING = """
import sys
from pathlib import Path
from trainer.system.lock import hold
hold(Path("runs/run"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_run_writes_to_is_told_and_one_that_it_left_is_not(
    clean_shards, tmp_path, capsys
):
    path = write_config(tmp_path, clean_shards)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert examine(path, [], 1.0) == 1
        assert f"fail  runs/run is in use by process {other.pid} on" in capsys.readouterr().out
    assert examine(path, [], 1.0) == 0


def alone(monkeypatch, rank: str) -> None:
    for name, value in {
        "RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_a_process_that_does_not_come_is_named(monkeypatch, capsys):
    alone(monkeypatch, "0")
    assert examine(None, [], 0.5) == 1
    assert "fail  process 1 of 2 did not come within 0.5 s" in capsys.readouterr().out


def test_a_first_host_that_does_not_answer_is_told_by_who_asked(monkeypatch, capsys):
    alone(monkeypatch, "1")
    assert examine(None, [], 0.5) == 1
    told = capsys.readouterr().out
    assert f"127.0.0.1:{os.environ['MASTER_PORT']} does not answer within 0.5 s" in told
    assert "--main_process_ip" in told


def started(rank: int, port: str, folder: Path, *arguments: str, **more: str) -> subprocess.Popen:
    """A process of two, on a host of its own as far as it is told."""
    environment = {
        "RANK": str(rank), "GROUP_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    return subprocess.Popen(
        [warm_python(), "-m", "trainer", "doctor", *arguments],
        cwd=folder, env=os.environ | environment | more, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_two_processes_meet_add_up_and_see_each_others_files(clean_shards, tmp_path):
    path, port = write_config(tmp_path, clean_shards), free_port()
    processes = [started(rank, port, tmp_path, str(path)) for rank in (0, 1)]
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert "ok    gloo: 2 processes add up 4 MB in" in first
    assert f": the first host's files are seen in {tmp_path}" in first
    assert first.count("3 shards from") == 1 and second == ""


def test_a_wrong_interface_another_folder_and_configuration_are_told_by_the_first_process(
    clean_shards, tmp_path
):
    path, port = write_config(tmp_path, clean_shards), free_port()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/plugins").symlink_to(REPOSITORY / "plugins")
    said = [str(path), "--patience", "6"]
    processes = [
        started(0, port, tmp_path, *said),
        started(1, port, tmp_path / "other", *said, "seed=1", GLOO_SOCKET_IFNAME="nothing0"),
    ]
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [1, 1], first + second
    host = f"host 1 ({socket.gethostname()})"
    assert f"fail  {host}: process 1 cannot all-reduce by gloo: " in first
    assert "GLOO_SOCKET_IFNAME is nothing0: name the interface that leads to the others" in first
    assert "process 0 cannot all-reduce by gloo" in first, first
    assert f"fail  {host}: a file of the first host's is not seen in {tmp_path / 'other'}" in first
    assert "fail  configuration differs: " in first
