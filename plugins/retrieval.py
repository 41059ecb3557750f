"""Do pictures and captions still find each other? Recall at 1, 5 and 10, both ways.

As for COCO and Flickr30k (arXiv 2103.00020, appendix E.1): a picture is right where a caption of
its own is among the k nearest of all captions, a caption where its picture is among the k nearest
pictures. The lines of a sample's text are its captions, as `pack coco --captions all` writes them;
one that stands under several pictures is one caption, for which each of them is right. A tie counts
against the model. For the intervals the captions of one picture are one case.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainer import (
    BadSample,
    Encoder,
    Estimate,
    Evaluation,
    Patterns,
    Sample,
    expand_local,
    hookimpl,
    pictures_of,
    rate_by_person,
    read_shard,
    refuse_unseen,
)

RECALLS = (1, 5, 10)


class Retrieval(Evaluation):
    """How often a picture finds its caption, and a caption its picture."""

    kind = "retrieval"

    class Options(Evaluation.Options):
        shards: Patterns = Field(min_length=1, description="local tars of captioned pictures")
        limit: int | None = Field(
            None, gt=0, description="the first so many pictures; all where absent"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        shards = expand_local(options.shards, self.kind)
        samples, texts, self._num_others = _captioned(shards, options.limit)
        self._pictures = pictures_of(samples)
        numbers: dict[str, int] = {}  # of each caption, in the order of their first picture
        owned = [
            (picture, numbers.setdefault(line, len(numbers)))
            for picture, lines in enumerate(texts)
            for line in lines
        ]
        self._captions = list(numbers)
        self._owned = torch.tensor(owned).T  # (2, o): a picture, a caption of its own

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, float]]:
        images = F.normalize(student.encode_image(self._pictures), dim=-1)
        captions = F.normalize(student.encode_text(self._captions), dim=-1)
        if not captions.isfinite().all():
            raise FloatingPointError("the model's text embeddings are not finite")
        shown = images.isfinite().all(-1)
        refuse_unseen(shown, self._pictures, teacher)
        if not shown.any():
            raise ValueError(
                f"no picture of {self.options.shards[0]} gave a finite embedding; "
                "the files do not decode, or the model has diverged"
            )
        owned = self._owned.to(images.device)
        owned = owned[:, shown[owned[0]]]  # what does not decode is neither asked nor found
        kept, picture = owned[0].unique(return_inverse=True)
        told, caption = owned[1].unique(return_inverse=True)
        images, captions = images[kept], captions[told]
        of_images = wrong_before_right(images, captions, torch.stack([picture, caption]))
        of_captions = wrong_before_right(captions, images, torch.stack([caption, picture]))
        # The first picture of each: which of several is written last, a GPU leaves open.
        by_caption = picture.new_zeros(len(captions)).scatter_reduce(
            0, caption, picture, "amin", include_self=False
        )
        yield from _recalls("image_to_text", of_images, picture.unique(), len(captions))
        yield from _recalls("text_to_image", of_captions, by_caption, len(images))
        yield "pictures", float(len(images))
        yield "captions", float(len(captions))
        yield "skipped", float(self._num_others + len(shown) - len(images))


def wrong_before_right(
    queries: Tensor, candidates: Tensor, owned: Tensor, chunk: int = 1024
) -> Tensor:
    """How many wrong candidates are at least as near to each query as its nearest right one.

    queries: (n, d), candidates: (k, d), unit length; owned: (2, o), a query and a right candidate.
    Returns (n,). chunk: queries at a time, to bound the (chunk, k) similarities.
    """
    counts = []
    for start in range(0, len(queries), chunk):
        cosines = queries[start : start + chunk] @ candidates.mT
        own = owned[:, (owned[0] >= start) & (owned[0] < start + chunk)]
        right = torch.zeros_like(cosines, dtype=torch.bool)
        right[own[0] - start, own[1]] = True
        nearest = cosines.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        counts.append(((cosines >= nearest) & ~right).sum(1))
    return torch.cat(counts)


def _recalls(
    prefix: str, wrong_before: Tensor, pictures: Tensor, num_candidates: int
) -> Iterator[tuple[str, Estimate]]:
    """wrong_before, pictures: (n,), of each query and the picture that it is a case of."""
    totals = pictures.bincount().tolist()
    for k in RECALLS:
        if k < num_candidates:
            hits = pictures[wrong_before < k].bincount(minlength=len(totals)).tolist()
            yield f"{prefix}/recall_{k}", rate_by_person(hits, totals)


def _captioned(
    shards: Sequence[str], limit: int | None
) -> tuple[list[Sample], list[list[str]], int]:
    """The samples with a picture and captions, the captions, and how many others there are."""
    samples, texts, num_others = [], [], 0
    for shard in shards:
        for sample in read_shard(shard):
            try:
                if isinstance(sample, BadSample):
                    raise sample
                lines = [line.strip() for line in (sample.text or "").split("\n") if line.strip()]
            except BadSample as bad:
                warnings.warn(f"{shard}: {bad.reason}; it is measured without", stacklevel=2)
                lines = []
            if not lines or not sample.has("picture"):
                num_others += 1
                continue
            samples.append(sample)
            texts.append(lines)
            if len(samples) == limit:
                return samples, texts, num_others
    if not samples:
        raise ValueError(f"{shards[0]}: no sample has both a picture and a caption; name others")
    return samples, texts, num_others


@hookimpl
def trainer_evaluations():
    return [Retrieval]
