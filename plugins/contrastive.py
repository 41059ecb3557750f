"""Teach pictures and captions to find each other: CLIP's own loss, over all ranks.

A picture or caption may have several positives: those of the same label (the sample's own, say a
person), or the same caption. A sample without a picture is one more wrong caption for all.
"""

from __future__ import annotations

from functools import partial
from random import Random
from zlib import crc32

import torch.distributed as dist

from trainer import (
    BadSample,
    Embeddings,
    Encoder,
    LossFn,
    Objective,
    Pair,
    Sample,
    Tower,
    gather_rows,
    hookimpl,
    multi_positive_info_nce,
)


class Contrastive(Objective):
    """InfoNCE between the pictures and the captions of a batch."""

    kind = "contrastive"
    trains = frozenset(Tower)
    trains_temperature = True

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair:
        if clean.text is None:
            raise BadSample("no caption")
        image = clean.image if clean.image_bytes is not None else None
        label = crc32((clean.label or clean.text).encode())
        return Pair(student_text=clean.text, student_image=image, label=label)

    def loss_fn(self, teacher: Encoder) -> LossFn:
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        return partial(_loss, block=self.options.batch_size // ranks)


def _loss(student: Embeddings, teacher: Embeddings, block: int) -> dict:
    """block: rows of a rank; a step may have fewer pictures."""
    image, image_labels = gather_rows(student.image, student.image_labels, block)
    text, text_labels = gather_rows(student.text, student.text_labels, block)
    return {
        "info_nce": multi_positive_info_nce(
            image, text, image_labels, text_labels, student.logit_scale
        )
    }


@hookimpl
def trainer_objectives():
    return [Contrastive]
