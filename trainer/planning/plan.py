"""Bytes on a device, by what holds them: weights, gradients, moments, activations, buffers.

What each strategy holds was read from what it allocates, and is held to that by tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from trainer.configuration.config import Config
from trainer.data.batches import Batch
from trainer.models.clip import Clip, Towers, rounded_by_autocast
from trainer.optim import matrices_of
from trainer.planning.rehearsal import Gradients, Kind, Rehearsal
from trainer.strategies.launching import Launch
from trainer.strategies.preparing import BUCKETS, blocks_of

FULL = 4  # bytes of a float32
LIVE_VALUES = 10**9  # that DeepSpeed's ZeRO-3 keeps gathered, where the launch file says nothing


@dataclass(frozen=True)
class Sizes:
    """Numbers of values: of the student, of what of it trains, of the moments of that, of both
    towers as loaded, of the largest block that repeats, of all that is in no block, and of what
    autocast would round.
    """

    student: int
    trained: int
    moments: int
    loaded: int
    block: int
    rest: int
    rounded: int = 0

    @staticmethod
    def of(student: Towers, clip: Clip, optimizer: str = "adamw") -> Sizes:
        blocks = [_count(block) for block in _outer(blocks_of(student))]
        total = _count(student)
        trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        with_one = matrices_of(student) if optimizer == "muon" else ()
        return Sizes(
            total,
            trained,
            2 * trained - sum(p.numel() for p in with_one),
            _count(clip.model),
            max(blocks, default=0),
            total - sum(blocks),
            sum(p.numel() for p in rounded_by_autocast(student)),
        )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _outer(blocks: list[nn.Module]) -> list[nn.Module]:
    """Without those that are within another."""
    inner = {part for block in blocks for part in block.modules() if part is not block}
    return [block for block in blocks if block not in inner]


@dataclass(frozen=True)
class Plan:
    """Bytes on one device, by what holds them; peak: the most at a time, which is less, since
    gradients come as activations go. other_activations: computed again if these are not, or the
    reverse.
    """

    parts: dict[str, int]
    peak: int
    other_activations: int


def kind_of(launch: Launch, device: str) -> Kind:
    if launch.is_deepspeed:  # the whole model is in that precision, nothing is cast on the way
        return Kind(device, launch.dtype, None, launch.is_shared_out)
    autocast = None if launch.precision == "no" else launch.dtype
    weights = launch.dtype if launch.strategy == "fsdp2" else torch.float32
    return Kind(device, weights, autocast, launch.is_shared_out)


def plan_of(
    config: Config, launch: Launch, device: str, sizes: Sizes, rehearsal: Rehearsal, batch: Batch
) -> Plan:
    """device: cpu or cuda. On a CPU the model as it was loaded is there as well; with a GPU it is
    in the machine's memory.
    """
    memory = config.memory
    computed = launch.dtype.itemsize  # bytes of a value as the student computes
    share = 1 / launch.num_devices
    trained, student = sizes.trained, sizes.student
    held: dict[str, float] = {"batch": _bytes_of(batch)}
    # On a CPU the loaded model serves as the teacher.
    is_own = device == "cpu" and launch.precision == "no" and memory.teacher == "whole"
    if device == "cpu":
        held["model as loaded, teacher too" if is_own else "model as loaded"] = FULL * sizes.loaded
    held["teacher"] = _teacher(sizes, memory.teacher, launch, device, is_own)
    if config.optimizer.anchor and not is_own:
        kept = FULL * share if launch.strategy == "fsdp2" else FULL
        held["original weights to pull to"] = trained * (computed if launch.is_deepspeed else kept)

    recomputes = memory.activation_checkpointing
    gradients = Gradients(computed, computed * share)
    match launch.strategy:
        case "one" | "ddp":
            held |= {"weights": FULL * student, "moments": FULL * sizes.moments}
            gradients = Gradients(FULL, FULL)
            if launch.strategy == "ddp":  # what is sent is their memory, from the start
                held["buckets"] = FULL * trained
                gradients = Gradients(FULL, 0)
        case "fsdp2":
            held |= {
                "weights": FULL * student * share,
                "moments": FULL * sizes.moments * share,
                "gathered weights": computed * (sizes.rest + 2 * sizes.block),
            }
            gradients = Gradients(computed, FULL * share)
        case "zero1" | "zero2":
            held |= {
                "weights": computed * student,
                "moments and float32 weights": 3 * FULL * trained * share,
            }
            bucket = BUCKETS["reduce_bucket_size"] * computed
            gradients = Gradients(computed, computed * share, bucket)
        case "zero3":
            gathered = min(LIVE_VALUES, student)
            gathered += min(BUCKETS["stage3_prefetch_bucket_size"], student)
            held |= {
                "weights": 0 if launch.offloads_weights else computed * student * share,
                "moments and float32 weights": (
                    0 if launch.offloads_moments else 3 * FULL * trained * share
                ),
                "gathered weights": computed * gathered,
                "buckets": computed * (BUCKETS["reduce_bucket_size"] + trained * share),
            }
            # A bucket is put in the order of the ranks, which is a copy; gloo makes another of it.
            copies = 2 if device == "cpu" else 1
            together = rehearsal.fullest_bucket(BUCKETS["reduce_bucket_size"])
            gradients = Gradients(computed, 0, copied=copies * computed, together=together)
    sizes_held = {name: int(size) for name, size in held.items()}
    in_backward = rehearsal.peak(gradients, recomputes)
    if launch.parts > 1 and launch.strategy != "zero3":
        in_backward += int(_of_earlier_parts(launch, trained, gradients))
    in_step = int(_in_update(launch, trained))
    parts = {
        **sizes_held,
        "gradients": int(gradients.kept * trained),
        "bucket for gradients": gradients.bucket,
        "activations": rehearsal.activations(recomputes),
    }
    in_training = sum(sizes_held.values()) + max(in_backward, in_step)
    # A GPU is given the student whole and in float32 before that is shared out.
    at_start = FULL * student + sizes_held["teacher"] if device != "cpu" else 0
    return Plan(
        {name: size for name, size in parts.items() if size},
        max(in_training, at_start),
        rehearsal.activations(not recomputes),
    )


def _bytes_of(batch: Batch) -> int:
    return batch.tokens.nbytes + sum(part.nbytes for part in batch.pixels.parts)


def _teacher(sizes: Sizes, placed: str, launch: Launch, device: str, is_own: bool) -> float:
    computed, share = launch.dtype.itemsize, 1 / launch.num_devices
    if placed == "whole":
        in_full = sizes.student - sizes.rounded if launch.autocasts else 0
        return 0 if is_own else computed * sizes.student + (FULL - computed) * in_full
    gathered = computed * (sizes.rest + 2 * sizes.block)
    if placed == "offloaded" and device != "cpu":
        return gathered
    return gathered + computed * sizes.student * share


def _of_earlier_parts(launch: Launch, trained: int, gradients: Gradients) -> float:
    """What a step's earlier parts left, to which the next adds."""
    # Shared out, or sent, with the last part alone; added in float32, beside DDP's buckets.
    if launch.strategy in ("ddp", "fsdp2"):
        return FULL * trained
    if launch.strategy == "zero1":
        return gradients.whole * trained
    return gradients.kept * trained


def _in_update(launch: Launch, trained: int) -> float:
    """When activations are gone: gradients, and under ZeRO a copy in float32."""
    if launch.is_deepspeed:
        share = trained / launch.num_devices
        return (0 if launch.strategy == "zero3" else launch.dtype.itemsize * share) + FULL * share
    if launch.strategy == "ddp":
        return 0
    return FULL * trained / (launch.num_devices if launch.strategy == "fsdp2" else 1)
