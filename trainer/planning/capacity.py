"""What a device holds, and whether a plan fits it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from trainer.strategies.launching import Launch
from trainer.system.files import size_of

# Of a GPU's memory: CUDA's own, NCCL's buffers, and gaps that the allocator cannot fill.
SPARE = 0.1


@dataclass(frozen=True)
class Capacity:
    """Bytes for each process; device: cpu or cuda."""

    bytes: float
    device: str

    @staticmethod
    def here(launch: Launch) -> Capacity:
        """Its GPUs' memory, or of its own the share of each process."""
        if torch.cuda.is_available() and not launch.is_on_cpu:
            return Capacity(torch.cuda.mem_get_info()[1], "cuda")
        own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", launch.num_devices))
        return Capacity(own / num_local, "cpu")

    def verdict(self, peak: float, case: str) -> str:
        """peak: bytes, in the case that is named."""
        has = f"{size_of(self.bytes)}, of which {SPARE:.0%} are not for us"
        if peak <= self.bytes * (1 - SPARE):
            return f"fits {has}: {size_of(peak)} with {case}"
        return (
            f"does NOT fit {has}: {size_of(peak)} with {case}; more devices, smaller batches, "
            "gradient accumulation, memory.activation_checkpointing=true, or launch/zero2.yaml, "
            "fsdp2.yaml or zero3.yaml"
        )
