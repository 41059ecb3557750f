"""Bytes that each device sends in a step, by what they are: of each strategy's own collectives.

By rings, as NCCL and gloo do for what is large: of n devices an all-reduce takes 2 (n-1) / n of the
bytes, a gathering or a scattering half of that.
"""

from __future__ import annotations

from trainer.planning.plan import FULL, Sizes
from trainer.strategies.launching import Launch


def sent_in_step(launch: Launch, sizes: Sizes, shares_teacher: bool = False) -> dict[str, int]:
    """Embeddings and losses, a few kilobytes a row, are left out."""
    computed, parts = launch.dtype.itemsize, launch.parts
    gathered, reduced = 0, 0  # bytes, as from one ring
    match launch.strategy:
        case "ddp":
            reduced = 2 * FULL * sizes.trained
        case "fsdp2":  # blocks before forward and backward; what is in none stays
            within_blocks = sizes.student - sizes.rest
            by_muon = 2 * sizes.trained - sizes.moments  # its matrices, whole, once a step
            gathered = computed * (2 * within_blocks + sizes.rest) * parts + FULL * by_muon
            reduced = FULL * sizes.trained
        case "zero1":
            gathered, reduced = computed * sizes.trained, 2 * computed * sizes.trained
        case "zero2":  # with each part of a step; all-reduced, of which each keeps its share
            gathered, reduced = computed * sizes.trained, 2 * computed * sizes.trained * parts
        case "zero3":  # what it still holds in the backward it does not gather again
            gathered = 2 * computed * sizes.student * parts
            reduced = computed * sizes.trained * parts
    sent = {
        "gradients": reduced,
        "weights": gathered,
        "teacher": computed * sizes.student * parts if shares_teacher else 0,
    }
    others = (launch.num_devices - 1) / launch.num_devices
    return {name: int(size * others) for name, size in sent.items() if size * others}
