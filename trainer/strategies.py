"""What differs between one process, DDP, FSDP2 and DeepSpeed's ZeRO: here and nowhere else.

The strategy is the launch file's. Whatever it is, the trained weights and AdamW's moments are read
and written whole, under their names in the model: a checkpoint fits every strategy and any number
of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.config import Config

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
STEP = "step"
SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
)
# What "auto" would have DeepSpeed ask of the model, which open_clip's does not answer. Bytes.
BUCKETS = {
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}


def start(config: Config) -> Accelerator:
    """accelerate, as it was launched. Raises ValueError where the ranks do not find each other."""
    has_device = torch.accelerator.is_available()
    uses_deepspeed = _is_set("ACCELERATE_USE_DEEPSPEED")
    patience = timedelta(seconds=config.timeout_seconds)
    # DeepSpeed makes further groups and names no time for them: half an hour, with gloo.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = patience
    group = InitProcessGroupKwargs(timeout=patience)
    if not has_device and uses_deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        group = InitProcessGroupKwargs(backend="gloo", timeout=patience)
    elif not has_device and _is_set("ACCELERATE_USE_FSDP"):
        # accelerate knows FSDP on GPUs alone; torch has it on CPUs as well, for who tests there.
        state = PartialState(backend="gloo", timeout=patience)
        state.distributed_type, state.device = DistributedType.MULTI_GPU, torch.device("cpu")
    elif not has_device:
        # It must be told, or each rank believes that it is alone.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    trackers: Any = list(config.trackers) or None
    accelerator = Accelerator(log_with=trackers, project_dir=config.output, kwargs_handlers=[group])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but each finds {accelerator.num_processes}; "
            "use a file of launch/ that fits this machine"
        )
    if accelerator.distributed_type not in SUPPORTED or (
        accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported; use DDP, FSDP2 "
            "(fsdp_version: 2) or DeepSpeed, as the files of launch/ do"
        )
    return accelerator


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
    names = [name for name, p in student.named_parameters() if p.requires_grad]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = clip or 0.0
        config["train_micro_batch_size_per_gpu"] = 1  # the batches are ours; it asks for a number
        config["zero_force_ds_cpu_optimizer"] = False  # torch's own AdamW is fused on CPUs too
        zero = config["zero_optimization"]
        zero |= {name: size for name, size in BUCKETS.items() if zero.get(name) == "auto"}
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = sorted(_block_names(student))
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


def _plain_name(name: str) -> str:
    """Without what activation checkpointing and torch.compile put in."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _block_names(model: nn.Module) -> set[str]:
    """Classes of the blocks that a tower repeats: each of these is gathered by itself."""
    lists = [one for one in model.modules() if isinstance(one, (nn.ModuleList, nn.Sequential))]
    found = set()
    for blocks in lists:
        kinds = {type(block) for block in blocks}
        if len(blocks) > 1 and len(kinds) == 1 and list(blocks[0].children()):
            found |= {kind.__name__ for kind in kinds}
    return found


class Spread:
    """The trained weights and their moments, whole, wherever their parts are.

    All ranks call its methods together, in the same order. Of one process, DDP and FSDP2.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], optimizer: Any):
        self.trained = trained
        self._optimizer = optimizer.optimizer  # accelerate's wrapper around it

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each trained parameter, on the device; float32 where training is."""
        for name, parameter in self.trained.items():
            yield name, _whole(parameter.detach())

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """`exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` of each that has taken a step."""
        for name, parameter in self.trained.items():
            state = self._optimizer.state.get(parameter, {})
            for key in (*MOMENTS, STEP) if state else ():
                yield f"{key}/{name}", _whole(state[key])

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """As they were yielded, on the CPU, to be looked up one by one. The weights themselves
        are in place already: the student had them before it was prepared.
        """
        for name, parameter in self.trained.items():
            if f"{STEP}/{name}" not in moments:
                continue
            state = {key: _placed_like(parameter, moments[f"{key}/{name}"]) for key in MOMENTS}
            step = moments[f"{STEP}/{name}"].float().to(parameter.device)
            self._optimizer.state[parameter] = {STEP: step} | state


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a whole value, where the parameter's is; a copy."""
    value = value.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)  # each rank has it


class ZeroSpread(Spread):
    """Of DeepSpeed's ZeRO-1, -2 and -3, through the functions it offers for that."""

    def __init__(self, trained: Mapping[str, nn.Parameter], optimizer: Any):
        super().__init__(trained, optimizer)
        self._zero = self._optimizer  # DeepSpeed's, around torch's AdamW
        self._adamw = self._zero.optimizer

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.trained.items():
            yield name, safe_get_full_fp32_param(parameter)

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_states()
        step = next(iter(self._adamw.state.values()))[STEP]
        for name, parameter in self.trained.items():
            for key in MOMENTS:
                yield f"{key}/{name}", safe_get_full_optimizer_state(parameter, key)
            yield f"{STEP}/{name}", step

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        steps = [moments[f"{STEP}/{name}"] for name in self.trained if f"{STEP}/{name}" in moments]
        if not steps:
            return
        # ZeRO has one count for all, and makes room for the moments with its first step.
        for part in self._parts():
            state = {key: torch.zeros_like(part) for key in MOMENTS}
            step = torch.tensor(float(max(steps)), device=part.device)  # each part counts its own
            self._adamw.state[part] = {STEP: step} | state
        self._link_states()
        for name, parameter in self.trained.items():
            # In bf16 the student was rounded on its way in: the float32 weights are set here.
            self._set(parameter, weights[name])
            for key in MOMENTS:
                if (moment := moments.get(f"{key}/{name}")) is not None:
                    self._set(parameter, moment, key)

    @property
    def _is_stage_3(self) -> bool:
        return hasattr(self._zero, "fp32_partitioned_groups_flat")

    def _link_states(self) -> None:
        """Of ZeRO-1 and -2: DeepSpeed does it after its first group's first step, for which the
        other groups have no states yet, and never again.
        """
        if not self._is_stage_3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _parts(self) -> list[Tensor]:
        """What AdamW really updates: this rank's part of all weights, flat."""
        if self._is_stage_3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _set(self, parameter: Any, value: Tensor, key: str | None = None) -> None:
        from deepspeed import utils

        if not self._is_stage_3:
            value = value.to(parameter.device)
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # Our own cut: DeepSpeed's leaves out that parts are filled up to the same size.
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        size = parameter.ds_tensor.numel()
        flat = F.pad(value.flatten(), (0, size * ranks - value.numel()))
        part = flat[rank * size : (rank + 1) * size]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)
