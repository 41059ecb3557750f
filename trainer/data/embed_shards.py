"""The clean samples of shards to their files of known embeddings, by the teacher itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from trainer.api import BadSample, Encoder, Objective, Sample, Tower
from trainer.configuration.config import Config
from trainer.data.known_embeddings import KnownEmbeddings
from trainer.data.readers import Reading, Share, read_share
from trainer.models.clip import Clip
from trainer.models.original import Original
from trainer.system.progress_bars import progress

PROBE = "A photo of Zoë's 12 O'CLOCK hats, 写真."  # no two tokenizers make the same of it


def known_embeddings(
    config: Config,
    clip: Clip,
    original: Original,
    teacher: Encoder,
    accelerator: Accelerator,
) -> KnownEmbeddings | None:
    """As `data.embeddings` says: none, those that are there, or those that are made first; a
    collective. teacher: that embeds with the original's.

    Raises ValueError where some are not there, or of another teacher alone; OSError.
    """
    if config.data.embeddings is None:
        return None
    # Of a teacher in float32 to the last bit; else in float16, which is finer than autocast's own.
    dtype = torch.float32 if original.computed == str(torch.float32) else torch.float16
    beside = {
        "architecture": clip.architecture,
        "prepare": asdict(clip.prepare),
        "precision": original.computed,
        "tokens": clip.tokenize([PROBE]).tolist(),
    }
    towers = {Tower.TEXT: original.towers.text, Tower.IMAGE: original.towers.image}
    teachers = {tower: digest_of(one, beside) for tower, one in towers.items() if one is not None}
    width = clip.architecture["embed_dim"]
    known = KnownEmbeddings.of(config.objectives, config.data, teachers, width, dtype)
    if config.data.embeddings == "make":
        # Hosts may have disks of their own: what one lacks is made by all.
        missing = sorted(set(gather_object(known.missing())))
        is_main = accelerator.is_main_process
        for shard, tower in progress(missing, unit="shard", desc="embedding", disable=not is_main):
            samples = list(read_share(Share(shard), 0, Reading(index=config.data.index)))
            rows = embedded(samples, tower, config.objectives.values(), teacher, width)
            if accelerator.is_local_main_process:
                known.save(rows, shard, tower)
        accelerator.wait_for_everyone()
    known.check()
    return known


def digest_of(tower: nn.Module, beside: Any) -> str:
    """Of all that its embeddings follow from. beside: what is no tensor of its own; JSON."""
    digest = sha256(json.dumps(beside, sort_keys=True, default=str).encode())
    for name, values in sorted(tower.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def embedded(
    samples: Sequence[Sample | BadSample],
    tower: Tower,
    objectives: Iterable[Objective],
    teacher: Encoder,
    width: int,
) -> Tensor:
    """(n, width) float32, a row for each; by all ranks together, which share the work out.

    NaN where there is nothing to embed, or an objective refuses the sample: nothing is kept of what
    names somebody in this run's rosters. What names people of later rosters is kept.
    """
    objectives = list(objectives)
    rows = torch.full((len(samples), width), np.nan)
    served = [i for i, one in enumerate(samples) if _serves(one, tower, objectives)]
    if served:
        own: list[Any] = [samples[i] for i in served]
        if tower is Tower.TEXT:
            made = teacher.encode_text([one.text for one in own])
        else:
            made = teacher.encode_image(PictureBytes(own))
        rows[served] = made.cpu()
    return rows


def _serves(sample: Sample | BadSample, tower: Tower, objectives: Sequence[Objective]) -> bool:
    if isinstance(sample, BadSample):
        return False
    try:
        if not all(one.accepts(sample) for one in objectives):
            return False
        return tower is Tower.IMAGE or sample.text is not None
    except BadSample:
        return False


class PictureBytes(Sequence):
    """Of samples, read when they are asked for: each rank asks for its own alone. Where there is
    none to read, none that decodes."""

    def __init__(self, samples: Sequence[Sample]):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place):
        with suppress(BadSample):
            return self._samples[place].image_bytes or b""
        return b""
