"""What a launch file, or accelerate from it, says of a run: its strategy, devices and precision."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from trainer.configuration.sections import OptimizerConfig

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TRUE = ("y", "yes", "t", "true", "on", "1")  # as accelerate reads a flag
STRATEGIES = ("one", "ddp", "fsdp2", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Launch:
    """parts: backward passes a step. offloads: what ZeRO-3 keeps in the machine's memory.

    strategy: of STRATEGIES, or another that `check` refuses.
    """

    strategy: str = "one"
    num_devices: int = 1
    precision: str = "no"
    parts: int = 1
    offloads_weights: bool = False
    offloads_moments: bool = False
    is_compiled: bool = False
    is_on_cpu: bool = False  # though there be GPUs

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @property
    def is_deepspeed(self) -> bool:
        return self.strategy.startswith("zero")

    @property
    def autocasts(self) -> bool:
        """Whether weights on a device are in float32, of which autocast makes what is computed."""
        return self.precision != "no" and self.strategy in ("one", "ddp")

    @property
    def is_shared_out(self) -> bool:
        """Whether weights are in parts, gathered when they are used."""
        return self.strategy in ("fsdp2", "zero3")

    def check(self, optimizer: OptimizerConfig) -> None:
        """Raises ValueError where what is configured cannot be launched so."""
        self.check_strategy()
        if optimizer.anchor and self.precision == "fp16":  # the pull would have to be scaled too
            raise ValueError(
                "optimizer.anchor does not go with fp16; launch with --mixed_precision bf16 or no"
            )
        if optimizer.kind == "muon" and self.is_deepspeed:
            raise ValueError(
                "optimizer.kind=muon moves whole matrices, which DeepSpeed's ZeRO cuts into parts; "
                "launch by launch/ddp.yaml or launch/fsdp2.yaml, or set optimizer.kind=adamw"
            )

    def check_strategy(self) -> None:
        """The same of what does not follow from the configuration."""
        if self.strategy == "fsdp1":
            raise ValueError(
                "FSDP of version 1 is not supported; set fsdp_version: 2, as launch/fsdp2.yaml does"
            )
        if self.strategy not in STRATEGIES or self.precision not in PRECISIONS:
            raise ValueError(
                f"{self.strategy} in {self.precision} is not supported; launch by a file of "
                f"launch/, with --mixed_precision {', '.join(PRECISIONS)}"
            )
        if self.is_compiled and self.strategy == "zero3":
            raise ValueError(
                "torch.compile does not go with ZeRO-3, whose weights come and go as a block runs; "
                "launch without dynamo, or by launch/fsdp2.yaml"
            )

    def on(self, num_devices: int) -> Launch:
        strategy = self.strategy
        if strategy in ("one", "ddp"):
            strategy = "ddp" if num_devices > 1 else "one"
        return replace(self, strategy=strategy, num_devices=num_devices)

    @staticmethod
    def of_environment(environment: Mapping[str, str] = os.environ) -> Launch:
        """As `accelerate launch` tells its processes; without it, one process."""
        prefix = "ACCELERATE_"
        said = {key.removeprefix(prefix): v for key, v in environment.items() if prefix in key}
        num_devices = int(environment.get("WORLD_SIZE", "1"))
        strategy = "ddp" if num_devices > 1 else "one"
        if said.get("USE_FSDP") == "true":
            strategy = f"fsdp{environment.get('FSDP_VERSION', '1')}"
        if said.get("USE_DEEPSPEED") == "true":
            strategy = f"zero{said.get('DEEPSPEED_ZERO_STAGE', '2')}"
        return Launch(
            strategy,
            num_devices,
            said.get("MIXED_PRECISION", "no"),
            _parts_said(environment),
            said.get("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") != "none",
            said.get("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none",
            _is_backend(said.get("DYNAMO_BACKEND")),
            is_cpu_asked_for(environment),
        )

    @staticmethod
    def of_file(path: Path, environment: Mapping[str, str] = os.environ) -> Launch:
        """As `accelerate launch --config_file` would start it here. Raises ValueError."""
        said: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or "distributed_type" not in said:
            raise ValueError(f"{path} names no distributed_type; give a file of launch/")
        zero = said.get("deepspeed_config") or {}
        fsdp, dynamo = (said.get(f"{name}_config") or {} for name in ("fsdp", "dynamo"))
        strategy = {
            "NO": "one", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp",
            "FSDP": f"fsdp{fsdp.get('fsdp_version', 1)}",
            "DEEPSPEED": f"zero{zero.get('zero_stage', 2)}",
        }.get(str(said["distributed_type"]))  # fmt: skip
        # DeepSpeed's launcher hands on nothing of dynamo but what the environment says.
        told = environment.get("ACCELERATE_DYNAMO_BACKEND")
        backend = told if zero else dynamo.get("dynamo_backend")
        if strategy is None:
            raise ValueError(
                f"{path}: distributed_type {said['distributed_type']} is not supported; use DDP, "
                "FSDP2 or DeepSpeed, as the files of launch/ do"
            )
        return Launch(
            strategy,
            int(said.get("num_processes", 1)),
            str(said.get("mixed_precision", "no")),
            int(zero.get("gradient_accumulation_steps") or _parts_said(environment)),
            zero.get("offload_param_device", "none") != "none",
            zero.get("offload_optimizer_device", "none") != "none",
            _is_backend(backend),
            bool(said.get("use_cpu")) or is_cpu_asked_for(environment),
        )


def is_cpu_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate is told to leave the GPUs alone."""
    return environment.get("ACCELERATE_USE_CPU", "").lower() in TRUE


def _is_backend(name: str | None) -> bool:
    """Of torch.compile."""
    return (name or "no").lower() != "no"


def _parts_said(environment: Mapping[str, str]) -> int:
    """Of a step, which no file says but DeepSpeed's."""
    parts = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    return int(parts) if parts.isdigit() else 1
