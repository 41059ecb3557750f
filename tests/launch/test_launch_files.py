"""Every accelerate file: accelerate reads it, DeepSpeed takes it, it says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from deepspeed.runtime.config import DeepSpeedConfig

from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "launch").glob("*.yaml"))
FILES = [path for path in FILES if "compute_environment" in path.read_text()]
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}
TYPES = {
    "cpu": DistributedType.NO,
    "cpus": DistributedType.MULTI_GPU,
    "ddp": DistributedType.MULTI_GPU,
    "compiled": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
} | {name: DistributedType.DEEPSPEED for name in STAGES}
SHARED = ["ddp", "compiled", "fsdp2", *STAGES]  # by GPUs, on one machine or many


def resolved(name: str | Path, *more: str):
    """What `accelerate launch` makes of the file and of what is said beside it."""
    file = name if isinstance(name, Path) else REPOSITORY / f"launch/{name}.yaml"
    command = ["--config_file", str(file), *more, "-m", "trainer", "train", "any.yaml"]
    arguments = _validate_launch_command(launch_command_parser().parse_args(command))[0]
    arguments.deepspeed_fields_from_accelerate_config = ""  # as its launcher does
    return arguments


def environment(name: str | Path) -> dict[str, str]:
    """What a process is started with."""
    arguments = resolved(name, "--main_process_port", "0")
    if arguments.use_deepspeed:
        return prepare_deepspeed_cmd_env(arguments)[1]
    return prepare_multi_gpu_env(arguments)


def test_every_strategy_has_its_file_and_no_other_is_there():
    assert {path.stem for path in FILES} == set(TYPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_every_file(path):
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert config.distributed_type == TYPES[path.stem]
    assert config.num_machines == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_says_how_it_is_started_and_what_to_change(path):
    header = path.read_text().partition("compute_environment")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    if path.stem in SHARED:
        assert f"accelerate launch --config_file launch/{path.name} -m trainer train" in header
        assert "num_machines" in header and "machine_rank" in header
        parts = "gradient_accumulation_steps"
        assert (parts if path.stem in STAGES else f"ACCELERATE_{parts.upper()}") in header
    if path.stem != "cpu":
        assert "num_processes" in header


@pytest.mark.parametrize("name", SHARED)
def test_the_same_file_serves_many_machines_by_what_its_header_names(name):
    said = "--num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip host0"
    arguments = resolved(name, *said.split())
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 16, 1)
    prepare = prepare_deepspeed_cmd_env if name in STAGES else prepare_multi_gpu_env
    prepare(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)
    assert arguments.rdzv_endpoint == "host0:29500"  # torch's launcher on each, and no ssh


@pytest.mark.parametrize("name", STAGES)
def test_deepspeed_takes_what_accelerate_makes_of_its_files(name, monkeypatch):
    for key, value in environment(name).items():
        if key.startswith("ACCELERATE_"):
            monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin(gradient_accumulation_steps=1, gradient_clipping=1.0)
    config = plugin.deepspeed_config
    # These two are not a launch file's to say: they follow from the batch of the configuration.
    del config["train_batch_size"]
    config["train_micro_batch_size_per_gpu"] = 4
    assert "auto" not in str(config)
    config["steps_per_print"] = 1_000_000
    zero = DeepSpeedConfig(config).zero_config
    assert zero.stage == STAGES[name]
    for size in (zero.reduce_bucket_size, zero.allgather_bucket_size, zero.prefetch_bucket_size):
        assert isinstance(size, int)
    is_offloaded = zero.offload_param is not None and zero.offload_param.device == "cpu"
    assert is_offloaded == (name == "zero3_offload")
    assert zero.gather_16bit_weights_on_model_save == (STAGES[name] == 3)
    assert not plugin.zero3_init_flag  # or the teacher would be cut up too


def test_fsdp2_shards_the_blocks_that_the_trainer_names(monkeypatch):
    for key, value in environment("fsdp2").items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None
    assert not plugin.cpu_ram_efficient_loading
