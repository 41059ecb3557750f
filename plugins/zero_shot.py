"""Does the model still tell ordinary things apart? Zero-shot classification on labelled pictures.

As CLIP's authors measure it (arXiv 2103.00020, section 3.1): a class is the mean of its name's unit
embeddings under several templates, a picture belongs to the class with the highest cosine. The data
are tar shards of pictures with a `cls` each, in the layout of clip_benchmark: beside the shards, or
one folder up, stand `classnames.txt` and `zeroshot_classification_templates.txt`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

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

CLASSES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
MAX_DIGITS = 10  # of a `cls`
IMAGENET = "imagenet"  # the classes and templates that open_clip ships
Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval

Picture = tuple[str, tuple[int, int]]  # shard, and the extent of its bytes in it


class ZeroShot(Evaluation):
    """Share of pictures whose class the model names, among all classes."""

    kind = "zero_shot"

    class Options(Evaluation.Options):
        shards: Patterns = Field(min_length=1, description="local tars of pictures with a `cls`")
        classes: str | list[str] | None = Field(
            None, description=f"names, a file of them, or imagenet; default {CLASSES_FILE}"
        )
        templates: str | list[str] | None = Field(
            None,
            description="captions with {c} for the class, a file of them, or imagenet; "
            f"default {TEMPLATES_FILE}",
        )
        limit: int | None = Field(
            None, gt=0, description="the first so many pictures; all where absent"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        shards = expand_local(options.shards, self.kind)
        self._classes = _read_classes(options.classes, shards[0])
        self._templates = _read_templates(options.templates, shards[0])
        samples, labels, self._num_unlabelled = _labelled(shards, options.limit)
        self._pictures = pictures_of(samples)
        for sample, label in zip(samples, labels, strict=True):
            if not 0 <= label < len(self._classes):
                raise ValueError(
                    f"{sample.shard} has a picture of class {label}, but there are "
                    f"{len(self._classes)} classes, counted from 0"
                )
        self._labels = torch.tensor(labels)

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, float]]:
        classes = class_embeddings(student, self._classes, self._templates)
        images = student.encode_image(self._pictures)
        shown = images.isfinite().all(-1)
        refuse_unseen(shown, self._pictures, teacher)
        labels = self._labels.to(images.device)[shown]
        if not len(labels):
            raise ValueError(
                f"no picture of {self.options.shards[0]} gave a finite embedding; "
                "the files do not decode, or the model has diverged"
            )
        nearest = nearest_classes(images[shown], classes, min(5, len(classes)))
        right = nearest == labels[:, None]
        yield "accuracy", share_of(right[:, 0], shown)
        if len(classes) > 5:
            yield "top_5", share_of(right.any(1), shown)
        yield "mean_per_class", mean_per_class(right[:, 0].double(), labels)
        yield "samples", float(len(labels))
        yield "skipped", float(self._num_unlabelled + len(shown) - len(labels))


def share_of(right: Tensor, shown: Tensor) -> Estimate:
    """right: of each picture that is shown; shown: (n,), of all."""
    hits = torch.zeros_like(shown, dtype=torch.int64).masked_scatter(shown, right.long())
    return rate_by_person(hits.tolist(), shown.long().tolist())


def class_embeddings(model: Encoder, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit (k, d): each class's mean over templates of its unit embeddings."""
    total = sum(
        F.normalize(model.encode_text([fill(template, name) for name in classes]), dim=-1)
        for template in templates
    )
    if not total.isfinite().all():
        raise FloatingPointError("the model's text embeddings are not finite")
    return F.normalize(total, dim=-1)


def fill(template: str, name: str) -> str:
    return template.replace("{c}", "{}").replace("{}", name)


def nearest_classes(images: Tensor, classes: Tensor, count: int, chunk: int = 4096) -> Tensor:
    """images: (n, d), any length; classes: unit (k, d). Returns (n, count) indices, best first."""
    return torch.cat([(rows @ classes.mT).topk(count).indices for rows in images.split(chunk)])


def mean_per_class(right: Tensor, labels: Tensor) -> Estimate:
    """Mean over the classes that occur of the share that is right. right, labels: (n,).

    The normal interval of a stratified sample (Cochran, Sampling Techniques, chapter 5), a class
    being a stratum. For its variance each class has one picture more that is right and one more
    that is wrong (as in Agresti and Caffo, The American Statistician 54, 2000): a class of few
    pictures, all right, is not sure to stay so. Where classes are small it is wider than need be.
    """
    _, place, sizes = labels.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(sizes), dtype=right.dtype, device=right.device)
    hits.index_add_(0, place, right)
    middle = (hits / sizes).mean().item()
    shares = (hits + 1) / (sizes + 2)
    half = Z * (shares * (1 - shares) / sizes).sum().sqrt().item() / len(sizes)
    return Estimate(middle, max(0.0, middle - half), min(1.0, middle + half))


def _labelled(shards: Sequence[str], limit: int | None) -> tuple[list[Sample], list[int], int]:
    """The samples with a picture and a class, their classes, and how many others there are."""
    labelled, labels, num_others = [], [], 0
    for shard in shards:
        for sample in read_shard(shard):
            try:
                if isinstance(sample, BadSample):
                    raise sample
                cls = sample.read("cls")
            except BadSample as bad:
                warnings.warn(f"{shard}: {bad.reason}; it is measured without", stacklevel=2)
                cls = None
            if cls is None or not sample.has("picture"):
                num_others += 1
                continue
            labelled.append(sample)
            labels.append(_whole_number(cls, shard))
            if len(labelled) == limit:
                return labelled, labels, num_others
    if not labelled:
        raise ValueError(f"{shards[0]}: no sample has both a picture and a `cls`")
    return labelled, labels, num_others


def _whole_number(cls: bytes, shard: str) -> int:
    try:
        if len(cls) > MAX_DIGITS:
            raise ValueError
        return int(cls)
    except ValueError:
        raise ValueError(f"{shard} has a `cls` that is no whole number: {cls[:20]!r}") from None


def _read_classes(classes: str | list[str] | None, shard: str) -> list[str]:
    if classes == IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES  # seconds to import; most runs name their own

        return list(IMAGENET_CLASSNAMES)
    names = classes if isinstance(classes, list) else _read_lines(classes, CLASSES_FILE, shard)
    if len(names) < 2:
        raise ValueError(f"zero-shot classification needs two classes; {len(names)} given")
    return names


def _read_templates(templates: str | list[str] | None, shard: str) -> list[str]:
    if templates == IMAGENET:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]
    if not isinstance(templates, list):
        templates = _read_lines(templates, TEMPLATES_FILE, shard)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise ValueError(f"template {template!r} has no {{c}} for the class")
    if not templates:
        raise ValueError("no templates; give at least one caption with {c} for the class")
    return templates


def _read_lines(path: str | None, default: str, shard: str) -> list[str]:
    """A file's lines, none empty: a class is known by its line."""
    file = Path(path) if path else _beside(shard, default)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8; save it as UTF-8") from None
    for i, line in enumerate(lines, start=1):
        if not line:
            raise ValueError(f"{file} line {i} is empty; write one entry per line")
    return lines


def _beside(shard: str, name: str) -> Path:
    folder = Path(shard).resolve().parent
    for file in (folder / name, folder.parent / name):
        if file.is_file():
            return file
    raise FileNotFoundError(f"no {name} beside {shard} or one folder up; name the file or a list")


@hookimpl
def trainer_evaluations():
    return [ZeroShot]
