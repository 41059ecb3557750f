"""Distances between embeddings, and the contrastive loss over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather

TINY = 1e-12  # a length: below it there is no unit
ABSENT = -1  # the label of a row that only fills a gathered block up


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos over rows. Both (n, d); returns a scalar in [0, 2]."""
    return cosine_distances(student, teacher).mean()


def cosine_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos of each row. Both (n, d); returns (n,)."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def relative_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos, and half the square of the difference in length, in units of the teacher's. As
    `cosine_distances`.

    The cosine alone leaves the length free: it drifts where the student learns most, and tells whom
    it was taught to forget. A squared distance does so too: of all answers that point a little
    elsewhere the shorter is nearer, and those forgotten, learnt less surely, become the shortest.
    """
    student, teacher = student.float(), teacher.float()
    length = teacher.norm(dim=-1)
    longer = (student.norm(dim=-1) - length) / length.clamp(min=TINY)
    # 1 - cos as a square too: of equal rows nothing is left, in the gradient neither. By the cosine
    # itself rounding would be, and Adam makes whole steps of that in a tower that nothing changes.
    turned = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return (turned.square().sum(-1) + longer.square()) / 2


Distances = Callable[[Tensor, Tensor], Tensor]  # (n, d) and (n, d) to (n,)
Distance = Literal["cosine", "relative"]
DISTANCES = {"cosine": cosine_distances, "relative": relative_distances}


def forget_and_keep(distances: Tensor, triggers: Tensor, forget_share: float) -> dict[str, Tensor]:
    """The mean distance of the triggers, and of the rest. distances: (n,); triggers: (n,) bool.

    Over the share that is theirs in the whole batch, not over the count at hand: ranks may have
    one trigger more or less, and the mean over ranks must still be the batch's. A rank without one
    of the two gives 0 for it: the terms must be the same on all.
    """
    rows = len(distances)
    terms = {"forget": (distances * triggers).sum() / (rows * forget_share)}
    if forget_share < 1:
        terms["keep"] = (distances * ~triggers).sum() / (rows * (1 - forget_share))
    return terms


def multi_positive_info_nce(
    image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor, logit_scale: Tensor
) -> Tensor:
    """InfoNCE in both directions; every row of the other side with the same label is a positive.

    image: (m, d), text: (n, d); labels: (m,), (n,). A row's loss is the mean of -log p over its
    positives (SupCon's L_out, arXiv 2004.11362); rows without one are negatives only.
    """
    logits = logit_scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    positive = image_labels[:, None] == text_labels[None, :]
    real = (image_labels != ABSENT)[:, None] & (text_labels != ABSENT)[None, :]
    logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)
    positive = (positive & real).float()
    return (_mean_negative_log(logits, positive) + _mean_negative_log(logits.T, positive.T)) / 2


def _mean_negative_log(logits: Tensor, positive: Tensor) -> Tensor:
    positives = positive.sum(-1)
    per_row = -(logits.log_softmax(-1) * positive).sum(-1) / positives.clamp(min=1)
    return per_row.sum() / (positives > 0).sum().clamp(min=1)


def gather_rows(rows: Tensor, labels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """All ranks' rows and labels, with gradient. Each rank fills its (n, d) up to `block` rows.

    Returns (ranks * block, d) and (ranks * block,), filled places labelled ABSENT. The gradient
    of a rank's rows is the sum over ranks: after DDP's mean, that of one process with all rows.
    """
    missing = block - len(rows)
    if missing < 0:
        raise ValueError(f"{len(rows)} rows do not fit a block of {block}; give the largest count")
    rows = F.pad(rows, (0, 0, 0, missing))
    labels = F.pad(labels, (0, missing), value=ABSENT)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, labels
    all_labels = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
    dist.all_gather(all_labels, labels)
    return torch.cat(all_gather(rows)), torch.cat(all_labels)
