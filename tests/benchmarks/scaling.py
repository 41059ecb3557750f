"""Communication of ZeRO-2, text tower of L/14, 8 to 1,024 GPUs: on paper, from the dry run.

Writes the table into launch/SCALING.md, whose text says what is assumed.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.planning.communication import sent_in_step
from trainer.planning.flops import Flops
from trainer.planning.plan import Sizes
from trainer.strategies.launching import Launch

PAGE = Path(__file__).parents[2] / "launch/SCALING.md"
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
IN_NODE, BYTES_A_SECOND_IN_NODE, BYTES_A_SECOND = 8, 400e9, 50e9  # a GPU's, one way
HOP_SECONDS = 5e-6
FLOPS_A_SECOND = 367e12  # what an H200 reaches in this step: `make bench ONLY=text_step` there
TOKENS = 14.4  # of a caption on average: packed, no padding is computed
CAPTIONS_EACH, CAPTIONS_IN_ALL = 512, 4096


def rows() -> list[dict[str, float]]:
    config = ModelConfig(name="ViT-L-14", random_weights=True)
    clip = clips.load(config, weightless=True)
    student = clips.student_of(clip, frozenset({Tower.TEXT}), config, temperature=False)
    sizes, work = Sizes.of(student, clip), Flops.of(student).text
    assert work
    length = np.array([TOKENS])
    flops = work.of(length, is_trained=True) + work.of(length, is_trained=False)  # a caption
    found = []
    for gpus in GPUS:
        sent = sum(sent_in_step(Launch("zero2", gpus, "bf16"), sizes).values())
        speed = BYTES_A_SECOND_IN_NODE if gpus <= IN_NODE else BYTES_A_SECOND
        # A ring's hops: twice round to reduce, once to gather.
        sending = sent / speed + 3 * (gpus - 1) * HOP_SECONDS
        row = {"gpus": gpus, "sent": sent, "sending": sending}
        for name, captions in (("each", CAPTIONS_EACH), ("all", CAPTIONS_IN_ALL / gpus)):
            computing = captions * flops / FLOPS_A_SECOND
            row |= {
                name: computing,
                f"{name}_rate": captions * gpus / (computing + sending),
                f"{name}_kept": computing / (computing + sending),
            }
        found.append(row)
    return found


def table() -> str:
    each, together = f"{CAPTIONS_EACH} a GPU", f"{CAPTIONS_IN_ALL:,} in all"
    head = ["GPUs", "sent a GPU", "sending"]
    for captions in (each, together):
        head += [f"{captions}: computing", "captions/s", "of the step"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows():
        cells = [
            f"{row['gpus']:,}",
            f"{row['sent'] / 1e6:.0f} MB",
            f"{row['sending'] * 1e3:.1f} ms",
        ]
        for name in ("each", "all"):
            cells += [f"{row[name] * 1e3:.2f} ms", f"{row[f'{name}_rate']:,.0f}"]
            cells.append(f"{row[f'{name}_kept']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure() -> dict[str, float]:
    """Share of the step that is computation, at each number of GPUs."""
    text = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"^\|.*\|$(\n\|.*\|$)*", lambda _: table(), text, flags=re.MULTILINE)
    PAGE.write_text(page, encoding="utf-8")
    print(table())
    return {
        f"{name}_share_of_compute_at_{row['gpus']:.0f}": row[f"{name}_kept"]
        for row in rows()
        for name in ("each", "all")
    }
