"""Communication of ZeRO-2, text tower of L/14, 8 to 1,024 GPUs: on paper, from the dry run.

Writes the table into launch/SCALING.md, whose text says what is assumed.
"""

from __future__ import annotations

import re
from math import ceil, log2

import numpy as np
import yaml

from tests.benchmarks.runs import REPOSITORY
from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.planning.communication import sent_in_step
from trainer.planning.flops import Flops
from trainer.planning.plan import Sizes
from trainer.strategies.launching import Launch
from trainer.strategies.preparing import BUCKETS

PAGE = REPOSITORY / "launch/SCALING.md"
CONFIG = REPOSITORY / "configs/vit_l14_names.yaml"
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
IN_NODE, BYTES_A_SECOND_IN_NODE = 8, 400e9  # a GPU's, one way
PORTS, BYTES_A_SECOND_OF_PORT = (8, 1), 50e9  # of a node; 400 Gb/s
# NCCL's own, where it decides between them (src/graph/tuning.cc), of LL128, which it takes on
# Hopper: microseconds a hop within a node and between two, and the bandwidth that is left.
RING, TREE, OF_BANDWIDTH = (1.9, 4.0), (1.25, 8.5), 0.92
FLOPS_A_SECOND = 367e12  # what an H200 reaches in this step: `make bench ONLY=text_step` there
TOKENS = 14.4  # of a caption on average: packed, no padding is computed
CAPTIONS_EACH, CAPTIONS_IN_ALL = 512, 4096


def rows() -> list[dict[str, float]]:
    raw = yaml.safe_load(CONFIG.read_text())["model"]
    config = ModelConfig(**raw | {"pretrained": None, "random_weights": True})
    clip = clips.load(config, weightless=True)
    student = clips.student_of(clip, frozenset({Tower.TEXT}), config, temperature=False)
    sizes, work = Sizes.of(student, clip), Flops.of(student).text
    assert work
    length = np.array([TOKENS])
    flops = work.of(length, is_trained=True) + work.of(length, is_trained=False)  # a caption
    # Gradients are reduced when a bucket of them is full, weights gathered by the optimizer's
    # groups, which is one where nothing decays.
    reductions, gatherings = ceil(sizes.trained / BUCKETS["reduce_bucket_size"]), 1
    found = []
    for gpus in GPUS:
        sent = sum(sent_in_step(Launch("zero2", gpus, "bf16"), sizes).values())
        waiting = reductions * min(2 * round_of_ring(gpus), round_of_tree(gpus))
        waiting += gatherings * round_of_ring(gpus)
        row: dict[str, float] = {"gpus": gpus, "sent": sent}
        for ports in PORTS:
            speed = BYTES_A_SECOND_IN_NODE
            if gpus > IN_NODE:  # as many rings as ports: each port passes on its ring's share
                speed = min(speed, ports * BYTES_A_SECOND_OF_PORT)
            row[f"sending_{ports}"] = sending = sent / (speed * OF_BANDWIDTH) + waiting
            for name, captions in (("each", CAPTIONS_EACH), ("all", CAPTIONS_IN_ALL / gpus)):
                computing = captions * flops / FLOPS_A_SECOND
                row |= {
                    name: computing,
                    f"{name}_rate_{ports}": captions * gpus / (computing + sending),
                    f"{name}_kept_{ports}": computing / (computing + sending),
                }
        found.append(row)
    return found


def round_of_ring(gpus: int) -> float:
    """Seconds, without those of the bytes: past all others."""
    between = gpus // IN_NODE - 1
    within = gpus - 1 - between
    return (within * RING[0] + between * RING[1]) * 1e-6


def round_of_tree(gpus: int) -> float:
    """Up and down again: through a node's GPUs, and over as many levels as nodes need."""
    return 2 * ((IN_NODE - 1) * TREE[0] + log2(gpus // IN_NODE) * TREE[1]) * 1e-6


def table() -> str:
    each, together = f"{CAPTIONS_EACH} a GPU", f"{CAPTIONS_IN_ALL:,} in all"
    head = ["GPUs", "sent a GPU", f"sending, {PORTS[0]} ports"]
    for captions in (each, together):
        head += [f"{captions}: computing", "captions/s", "of the step"]
    head += [f"sending, {PORTS[1]} port", f"{each}: captions/s", "of the step"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows():
        many, one = PORTS
        cells = [f"{row['gpus']:,}", f"{row['sent'] / 1e6:.0f} MB", milliseconds(row, many)]
        for name in ("each", "all"):
            cells += [f"{row[name] * 1e3:.2f} ms", *rate_and_share(row, name, many)]
        cells += [milliseconds(row, one), *rate_and_share(row, "each", one)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def milliseconds(row: dict[str, float], ports: int) -> str:
    return f"{row[f'sending_{ports}'] * 1e3:.1f} ms"


def rate_and_share(row: dict[str, float], name: str, ports: int) -> list[str]:
    return [f"{row[f'{name}_rate_{ports}']:,.0f}", f"{row[f'{name}_kept_{ports}']:.0%}"]


def measure() -> dict[str, float]:
    """Share of the step that is computation, at each number of GPUs."""
    text = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"^\|.*\|$(\n\|.*\|$)*", lambda _: table(), text, flags=re.MULTILINE)
    PAGE.write_text(page, encoding="utf-8")
    print(table())
    return {
        f"{name}_share_of_compute_at_{row['gpus']:.0f}_by_{ports}": row[f"{name}_kept_{ports}"]
        for row in rows()
        for name in ("each", "all")
        for ports in PORTS
    }
