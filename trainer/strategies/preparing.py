"""What differs between one process, DDP, FSDP2 and DeepSpeed's ZeRO: here and nowhere else.

The strategy is the launch file's. Whatever it is, the trained weights and AdamW's moments are read
and written whole, under their names in the model (spread.py): a checkpoint fits every strategy and
any number of processes.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import distributed_c10d, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear  # torch's own: DeepSpeed puts another in its place

from trainer.configuration.config import Config
from trainer.strategies.launching import Launch
from trainer.strategies.spread import Spread
from trainer.strategies.zero import ZeroSpread
from trainer.system.interruption import end_with_launcher

Model = TypeVar("Model", bound=nn.Module)

SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
)
# Elements, where the launch file names none: DeepSpeed's own 500 million would hold 2 GB in float32
# on each device, and "auto" asks the model for a width that open_clip's does not tell.
BUCKETS = {
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}


def start(config: Config) -> Accelerator:
    """accelerate, as it was launched. Raises ValueError where that cannot be, or where the ranks do
    not find each other."""
    Launch.of_environment().check_strategy()
    end_with_launcher()
    has_device = torch.accelerator.is_available()
    uses_deepspeed = _is_set("ACCELERATE_USE_DEEPSPEED")
    patience = timedelta(seconds=config.timeout_seconds)
    # DeepSpeed makes further groups and names no time for them: half an hour, with gloo.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = patience
    group = InitProcessGroupKwargs(timeout=patience)
    if not has_device and uses_deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _compile_nothing()
        group = InitProcessGroupKwargs(backend="gloo", timeout=patience)
    elif not has_device and _is_set("ACCELERATE_USE_FSDP"):
        # accelerate knows FSDP on GPUs alone; torch has it on CPUs as well, for who tests there.
        state = PartialState(backend="gloo", timeout=patience)
        state.distributed_type, state.device = DistributedType.MULTI_GPU, torch.device("cpu")
    elif not has_device:
        # It must be told, or each rank believes that it is alone.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    trackers: Any = list(config.trackers) or None
    # Gradients in the very memory that is sent: no copy of all of them.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(
        log_with=trackers, project_dir=config.output, kwargs_handlers=[group, ddp]
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but each finds {accelerator.num_processes}; "
            "use a file of launch/ that fits this machine"
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported; use DDP, FSDP2 "
            "(fsdp_version: 2) or DeepSpeed, as the files of launch/ do"
        )
    return accelerator


def _compile_nothing() -> None:
    """On CPUs DeepSpeed would compile a reduction through shared memory as it starts, which takes
    minutes on a new machine and serves its inference alone.
    """
    from deepspeed import ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False


def is_compiled(accelerator: Accelerator) -> bool:
    return accelerator.state.dynamo_plugin.backend != DynamoBackend.NO


def _zero_stage(accelerator: Accelerator) -> int | None:
    """None where it is not DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return None
    return accelerator.state.deepspeed_plugin.zero_stage


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def prepare(
    accelerator: Accelerator,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float | None,
) -> tuple[nn.Module, Any, Spread]:
    """accelerate's `prepare` of the student and its optimizer, with what it must be told before.

    clip: the largest norm of the gradient, which DeepSpeed sees to by itself.
    """
    names = [_plain_name(name) for name, p in student.named_parameters() if p.requires_grad]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = clip or 0.0
        config["train_micro_batch_size_per_gpu"] = 1  # the batches are ours; it asks for a number
        config["zero_force_ds_cpu_optimizer"] = False  # torch's own AdamW is fused on CPUs too
        if "fp16" in config:
            config["fp16"]["auto_cast"] = False  # it rebuilds what it is given, which are integers
        zero = config["zero_optimization"]
        for name, size in BUCKETS.items():
            if zero.get(name, "auto") == "auto":
                zero[name] = size
        if _zero_stage(accelerator) == 3:
            _round_once()
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = kinds_to_wrap(student)
        if policy := plugin.mixed_precision_policy:
            # Gradients are added up over the ranks in float32, as DDP does.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=policy.param_dtype, reduce_dtype=torch.float32
            )
    prepared, optimizer = accelerator.prepare(student, optimizer)
    plain = accelerator.unwrap_model(prepared, keep_torch_compile=False)
    parameters = {_plain_name(name): p for name, p in plain.named_parameters()}
    trained = {name: parameters[name] for name in names}
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepared, optimizer, ZeroSpread(trained, optimizer)
    return prepared, optimizer, Spread(trained, optimizer)


def _round_once() -> None:
    """ZeRO-3 has a linear layer of its own, which keeps no gathered weights for the backward. It
    rounds a product before it adds the bias: in bf16 losses were up to .05 from float32's within 30
    steps. With torch's forward they are as near as other strategies'.
    """
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(input, weight, bias)  # a built-in, which has no signature to look at

    LinearFunctionForZeroStage3.forward = staticmethod(forward)


def compile_blocks(accelerator: Accelerator, frozen: nn.Module) -> None:
    """In place, where `prepare` compiles the student; not of a model in parts."""
    if is_compiled(accelerator) and not any(isinstance(p, DTensor) for p in frozen.parameters()):
        for block in blocks_of(frozen):
            block.compile(**accelerator.state.dynamo_plugin.to_kwargs())


def _plain_name(name: str) -> str:
    """Without what activation checkpointing and torch.compile put in."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What its towers repeat, inner before outer: each is gathered or computed again by itself."""
    kinds: set[type] = set()
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            found = {type(block) for block in module}
            if len(module) > 1 and len(found) == 1 and list(module[0].children()):
                kinds |= found
    return [module for module in model.modules() if type(module) in kinds][::-1]


def innermost_blocks_of(model: nn.Module) -> list[nn.Module]:
    """Of those that stand in a row the ones that hold no others, as ConvNeXt's stages do: what is
    computed again within what is so too is computed a third time."""
    rows = (one for one in model.modules() if isinstance(one, (nn.ModuleList, nn.Sequential)))
    standing = {block for row in rows for block in row} & set(blocks_of(model))
    return [
        one for one in standing if standing.isdisjoint(m for m in one.modules() if m is not one)
    ]


def kinds_to_wrap(student: nn.Module) -> list[str]:
    """The classes of its blocks, for accelerate, which looks through what computes a block again:
    by the wrapper's own name it finds none, and all would be gathered at once."""
    blocks = (getattr(block, "_checkpoint_wrapped_module", block) for block in blocks_of(student))
    return sorted({type(block).__name__ for block in blocks})


def spread_out(frozen: Model, device: torch.device, offload: bool) -> Model:
    """Of a frozen model on the CPU a part on each process, gathered a block at a time as it runs.

    offload: the parts stay in the machine's memory. All ranks have to run it equally often.
    """
    if not dist.is_initialized():  # one process, whose part is the whole
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
    modules: list[nn.Module] = [*blocks_of(frozen), frozen]
    for module in modules:
        fully_shard(module, mesh=mesh, offload_policy=policy, reshard_after_forward=True)
    return frozen
