"""A launch is the same read from its file and from what accelerate makes of the file."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import str_to_bool

from tests.conftest import REPOSITORY
from tests.launch.test_launch_files import SHARED, STAGES, environment
from trainer.configuration.sections import OptimizerConfig
from trainer.planning.capacity import Capacity
from trainer.strategies.launching import TRUE, Launch, is_cpu_asked_for

FOLDER = REPOSITORY / "launch"
SAME = {"compiled": "ddp", "zero3_offload": "zero3"}  # as far as a dry run goes


@pytest.mark.parametrize("name", SHARED)
def test_the_file_says_what_accelerate_tells_its_processes(name):
    told = environment(name) | {"WORLD_SIZE": "8"}
    launch = Launch.of_file(FOLDER / f"{name}.yaml")
    assert launch == Launch.of_environment(told)
    assert launch.strategy == SAME.get(name, name) and launch.num_devices == 8
    assert launch.offloads_weights == launch.offloads_moments == name.endswith("_offload")


@pytest.mark.parametrize("name", SHARED)
def test_parts_of_a_step_that_the_environment_says_count_beside_a_file(name):
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    assert Launch.of_file(FOLDER / f"{name}.yaml", told).parts == 4


@pytest.mark.parametrize("name", STAGES)
def test_parts_of_a_step_that_deepspeeds_file_says_count(name, tmp_path):
    text = (FOLDER / f"{name}.yaml").read_text()
    file = tmp_path / f"{name}.yaml"
    key = "deepspeed_config:\n"
    file.write_text(text.replace(key, f"{key}  gradient_accumulation_steps: 4\n"))
    assert Launch.of_file(file).parts == 4
    assert environment(file)["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"


def test_the_cpu_is_asked_for_by_what_accelerate_takes_for_true():
    for flag in (*TRUE, "True", "false", "0", "no"):
        assert is_cpu_asked_for({"ACCELERATE_USE_CPU": flag}) == str_to_bool(flag)
    assert not is_cpu_asked_for({})


def test_without_a_launcher_there_is_one_process():
    assert Launch.of_environment({}) == Launch()
    assert Launch.of_file(FOLDER / "cpu.yaml") == Launch(is_on_cpu=True)


def test_fsdp_of_version_1_is_refused_read_from_the_file_and_from_the_environment(tmp_path):
    text = (FOLDER / "fsdp2.yaml").read_text()
    for version in ("fsdp_version: 1", ""):  # what accelerate takes where none is said
        file = tmp_path / "fsdp1.yaml"
        file.write_text(text.replace("fsdp_version: 2", version))
        launch = Launch.of_file(file)
        assert launch == Launch.of_environment(environment(file) | {"WORLD_SIZE": "8"})
        with pytest.raises(ValueError, match="FSDP of version 1 is not supported; set fsdp_ver"):
            launch.check(OptimizerConfig(lr=0.1))


def test_what_is_compiled_is_refused_with_zero3_and_with_nothing_else():
    backend = {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    for name in SHARED:
        told = environment(name) | {"WORLD_SIZE": "8"}
        launch = Launch.of_file(FOLDER / f"{name}.yaml", backend)
        if launch.is_deepspeed:
            assert launch.is_compiled and launch == Launch.of_environment(told | backend)
        else:  # its own launcher says so or not, whatever the environment was
            assert launch.is_compiled == (name == "compiled")
        if launch.strategy == "zero3":
            with pytest.raises(ValueError, match="torch.compile does not go with ZeRO-3"):
                launch.check(OptimizerConfig(lr=0.1))
        else:
            launch.check(OptimizerConfig(lr=0.1))


def test_a_file_for_the_cpu_is_planned_for_the_cpu_where_there_are_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    for name, device in (("cpu", "cpu"), ("cpus", "cpu"), ("ddp", "cuda")):
        assert Capacity.here(Launch.of_file(FOLDER / f"{name}.yaml")).device == device


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_muon_is_refused_where_matrices_are_cut(strategy):
    muon, adamw = OptimizerConfig(kind="muon", lr=0.1), OptimizerConfig(lr=0.1)
    with pytest.raises(ValueError, match=r"launch by launch/ddp.yaml or launch/fsdp2.yaml, or set"):
        Launch(strategy, 2).check(muon)
    Launch(strategy, 2).check(adamw)
    for whole in ("one", "ddp", "fsdp2"):
        Launch(whole, 2).check(muon)


@pytest.mark.parametrize("launch", [Launch(precision="fp8"), Launch("zero0", 2)])
def test_what_is_not_supported_is_refused_with_what_is(launch):
    with pytest.raises(ValueError, match="is not supported; launch by a file of launch/, with"):
        launch.check(OptimizerConfig(lr=0.1))


def test_several_devices_without_another_strategy_are_ddp():
    assert Launch().on(2).strategy == "ddp"
    assert Launch("ddp", 8).on(1) == Launch()
    assert Launch("zero2", 8).on(64) == Launch("zero2", 64)


@pytest.mark.parametrize("text", ["steps: 3", "[1, 2]", "distributed_type: TPU"])
def test_another_file_is_refused_with_what_to_give(tmp_path, text):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ValueError, match="the files of launch|a file of launch"):
        Launch.of_file(tmp_path / "other.yaml")
