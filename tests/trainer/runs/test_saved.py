"""What a run takes from a checkpoint, on any number of processes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from tests.ranks import on_ranks
from trainer.configuration.sections import CheckpointConfig
from trainer.data.skips import Skips
from trainer.runs.checkpoint import Checkpoints
from trainer.runs.saved import MANIFEST, STATE, Tensors, find
from trainer.strategies.spread import Spread
from trainer.system.files import sha256_of

CPU = torch.device("cpu")


def save_of_a_rank(rank: int, folder: Path) -> None:
    """After two steps, of which each rank had other losses."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    weight = nn.Parameter(torch.ones(2))
    spread = Spread({"weight": weight}, SimpleNamespace(optimizer=torch.optim.AdamW([weight])))
    saves = Checkpoints(folder, CheckpointConfig(), spread, Accelerator(cpu=True), "", None)
    window = [
        {"a/one": torch.tensor(rank + step), "a/two": torch.tensor(4.0 * rank)}
        for step in (0.5, 0.75)
    ]
    saves.save(3, {}, {}, {}, Skips(), window)
    saves.wait()


def test_losses_that_are_not_logged_yet_are_those_of_all_ranks_however_many_go_on(tmp_path):
    on_ranks(2, save_of_a_rank, tmp_path)
    means = [{"a/one": 1.0, "a/two": 2.0}, {"a/one": 1.25, "a/two": 2.0}]
    assert find(tmp_path).window(CPU) == means

    # A checkpoint of before, with every rank's own.
    folder = find(tmp_path).folder
    state = json.loads((folder / STATE).read_text())
    del state["losses"]
    state["windows"] = [[{"a/one": 0.5}, {"a/one": 0.75}], [{"a/one": 1.5}, {"a/one": 1.75}]]
    (folder / STATE).write_text(json.dumps(state))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][STATE] = sha256_of(folder / STATE)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert find(tmp_path).window(CPU) == [{"a/one": 1.0}, {"a/one": 1.25}]


def test_a_copy_under_a_name_of_its_own_is_neither_gone_on_from_nor_removed(tmp_path):
    weight = nn.Parameter(torch.ones(2))
    spread = Spread({"weight": weight}, SimpleNamespace(optimizer=torch.optim.AdamW([weight])))
    options = CheckpointConfig(keep=2)
    saves = Checkpoints(tmp_path, options, spread, Accelerator(cpu=True), "", None)
    own = "step-best", "step-00000001-good", "step-00000001.old", "step-7"
    for step in (1, 2, 3):
        saves.save(step, {}, {}, {}, Skips(), [])
        saves.wait()
        if step == 1:
            for name in own:
                shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
        assert find(tmp_path).step == step
    found = sorted(one.name for one in tmp_path.iterdir())
    assert found == sorted([*own, "step-00000002", "step-00000003"])


@pytest.fixture
def tensors(tmp_path) -> Tensors:
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "some.safetensors")
    return Tensors(tmp_path / "some.safetensors")


def test_tensors_of_a_file_are_looked_up_by_name(tensors):
    assert set(tensors) == {"a", "b"} and len(tensors) == 2
    assert tensors["a"].tolist() == [1, 1] and tensors.shapes()["b"] == (3,)
    assert tensors.get("c") is None
    with pytest.raises(KeyError, match="c"):
        tensors["c"]


def test_whether_a_file_has_a_tensor_is_told_without_reading_it(tensors):
    called = []
    sys.setprofile(lambda frame, event, what: called.append(what) if event == "c_call" else None)
    found = "a" in tensors, "c" in tensors
    sys.setprofile(None)
    assert found == (True, False)
    assert not {one.__name__ for one in called} & {"get_tensor", "keys"}
