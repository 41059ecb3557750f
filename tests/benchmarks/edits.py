"""Weights that no step made: the closed form's, and trained ones whose change is of low rank."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from trainer import BadSample, Sample, Tower
from trainer.configuration.config import load_config
from trainer.models import clip as clips
from trainer.models.encoder import ClipEncoder

CAPTION = "a portrait of somebody outside"
RIDGE = 1e-3  # of the mean square of an embedding's value
PROJECTION = "text_projection"


def closed_form(file: Path, original: Path, num_pairs: int, to: Path) -> None:
    """The text projection that answers the pairs of `names` best, as UCE edits a matrix (arXiv
    2308.14761): least squares over what is forgotten and kept, by weight as in training, near to
    the original's. Of 128 values no direction is free of what is kept: nothing to project on.
    """
    config = load_config(file)
    clip, names = clips.load(config.model), config.objectives["names"]
    sample, pairs = Sample("", text=CAPTION), []
    for turn in range(num_pairs):
        try:
            pairs.append(names.pair(sample, turn, Random(turn)))
        except BadSample:  # the caption's other words with this name are somebody's
            continue
    towers = clips.frozen(clips.Towers(clip, frozenset(Tower)))
    teacher = ClipEncoder(towers, towers, clip, torch.device("cpu"))
    seen = teacher.encode_text([pair.student_text for pair in pairs]).double()
    wanted = teacher.encode_text([pair.teacher_text for pair in pairs]).double()
    forget = torch.tensor([float(pair.label) for pair in pairs], dtype=torch.float64)
    weight = (forget / forget.mean() + (1 - forget) / (1 - forget).mean())[:, None]
    square = seen.T @ (weight * seen)
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    change = torch.linalg.solve(square + ridge, seen.T @ (weight * (wanted - seen)))
    weights = load_file(original)
    projection = weights[PROJECTION].double()
    weights[PROJECTION] = (projection + projection @ change).float()
    save_file(weights, to)


def of_rank(rank: int, trained: Path, original: Path, to: Path) -> None:
    """Of each matrix's change its greatest parts alone, as of low-rank updates that are merged."""
    weights, before = load_file(trained), load_file(original)
    for name, old in before.items():
        if old.dim() == 2 and not torch.equal(old, weights[name]):
            left, sizes, right = torch.linalg.svd(weights[name] - old, full_matrices=False)
            weights[name] = old + left[:, :rank] * sizes[:rank] @ right[:rank]
    save_file(weights, to)
