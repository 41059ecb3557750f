"""Teach pictures and captions to find each other: CLIP's own loss, over all ranks.

A picture or caption may have several positives: those of the same label (the sample's own, say a
person), or without one those of the same caption. A sample without a picture is one more wrong
caption for all.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from random import Random

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
        label = clean.text if clean.label is None else f"label {clean.label}"
        return Pair(student_text=clean.text, student_image=image, label=number_of(label))

    def loss_fn(self, teacher: Encoder) -> LossFn:
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        return partial(_loss, block=self.options.batch_size // ranks)


def number_of(label: str) -> int:
    """Of 63 bits: two of a billion labels share theirs once in 20 tries."""
    return int.from_bytes(blake2b(label.encode(), digest_size=8).digest(), "big") >> 1


def _loss(student: Embeddings, teacher: Embeddings, block: int) -> dict:
    """block: rows of a rank; a step may have fewer pictures."""
    text, text_labels = gather_rows(student.text, student.text_labels, block)
    image, image_labels = student.image, student.image_labels
    if image is None:
        # None at hand, but this rank must take part in the gathering, and in its backward.
        image, image_labels = student.text[:0], student.text_labels[:0]
    image, image_labels = gather_rows(image, image_labels, block)
    return {
        "info_nce": multi_positive_info_nce(
            image, text, image_labels, text_labels, student.logit_scale
        )
    }


@hookimpl
def trainer_objectives():
    return [Contrastive]
