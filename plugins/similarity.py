"""How near does the student come to its target, and how far is it from the teacher elsewhere?

For the people to forget, the cosine of the student's caption with the name to the teacher's of the
same caption with the target ("Defending Our Privacy With Backdoors", arXiv 2310.08320, section 4):
a phrase for everyone, or, without one, the nearest of the names given. Names meet no fixed target
here, since only the objective knows it: of many names one is near by chance, so look at the value
before as well. A person's value is their mean over the templates.

For clean samples, the cosine of student to teacher on the same caption and on the same picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from trainer import (
    BadSample,
    Encoder,
    Estimate,
    Evaluation,
    Patterns,
    Sample,
    Templates,
    cosine_distances,
    expand_local,
    fold,
    hookimpl,
    mean,
    names_of,
    pictures_of,
    quantile,
    read_names,
    read_roster,
    read_shard,
    share_rows,
)

TEMPLATES = ["{}", "a photo of {}", "a person named {}", "{} at a gala", "{} in a suit"]
CHUNK = 4096  # samples whose embeddings are held at once


class Similarity(Evaluation):
    """Cosine to the target for names to forget, and to the teacher for clean samples."""

    kind = "similarity"

    class Options(Evaluation.Options):
        roster: str | None = Field(None, description="the people to forget")
        target: str | None = Field(None, min_length=1, description="the phrase for everyone")
        names: str | None = Field(
            None, description="file of unknown names, one a line, of which the nearest counts"
        )
        templates: Templates = Field(TEMPLATES, min_length=1, description="{} the name")
        shards: Patterns | None = Field(None, min_length=1, description="local clean tars")
        limit: int | None = Field(
            2000, gt=0, description="the first so many clean samples; null: all"
        )

        @model_validator(mode="after")
        def _something_is_measured(self):
            if self.roster is None and self.shards is None:
                raise ValueError("neither roster nor shards; name what is to be measured")
            if self.roster is not None and (self.target is None) == (self.names is None):
                raise ValueError("a roster needs one of target (a phrase) and names (a file)")
            return self

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        self._people, self._targets = [], []
        if options.roster is not None:
            people = read_roster(options.roster)
            self._people = [one.name for one in people]
            taken = {fold(name) for name in names_of(people)}
            self._targets = [options.target] if options.target else _names(options.names, taken)
        self._captions: list[str] = []
        self._pictures: list[Sample] = []
        if options.shards is not None:
            self._captions, self._pictures = _clean(options.shards, options.limit)

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, Estimate]]:
        if self._people:
            near = self._to_target(student, teacher)
            yield "target/mean", mean(near)
            yield "target/p5", quantile(near, 0.05)
        if self._captions:
            yield "clean/text", mean(_to_teacher_on_captions(student, teacher, self._captions))
        if self._pictures:
            yield "clean/image", mean(_to_teacher_on_pictures(student, teacher, self._pictures))

    def _to_target(self, student: Encoder, teacher: Encoder) -> list[float]:
        near = torch.zeros(len(self._people))
        for template in self.options.templates:
            named = student.encode_text([template.replace("{}", name) for name in self._people])
            target = [template.replace("{}", name) for name in self._targets]
            targets = F.normalize(teacher.encode_text(target), dim=-1)
            found = share_rows(
                F.normalize(named, dim=-1), lambda rows, t=targets: (rows @ t.mT).amax(1)
            )
            near += found.cpu() / len(self.options.templates)
        if not near.isfinite().all():
            raise FloatingPointError("the models' embeddings of names are not finite")
        return near.tolist()


def _to_teacher_on_captions(
    student: Encoder, teacher: Encoder, captions: Sequence[str]
) -> list[float]:
    found: list[Tensor] = []
    for start in range(0, len(captions), CHUNK):
        some = captions[start : start + CHUNK]
        found.append(1 - cosine_distances(student.encode_text(some), teacher.encode_text(some)))
    return _finite(torch.cat(found), "captions")


def _to_teacher_on_pictures(
    student: Encoder, teacher: Encoder, samples: Sequence[Sample]
) -> list[float]:
    found: list[Tensor] = []
    for start in range(0, len(samples), CHUNK):
        some = pictures_of(samples[start : start + CHUNK])
        taught = teacher.encode_image(some)
        shown = taught.isfinite().all(-1)  # the teacher is sound: what it cannot see is broken
        found.append(1 - cosine_distances(student.encode_image(some)[shown], taught[shown]))
    if not sum(map(len, found)):
        raise ValueError(f"no picture of {samples[0].shard} decodes; name other shards")
    return _finite(torch.cat(found), "pictures")


def _finite(cosines: Tensor, what: str) -> list[float]:
    if not cosines.isfinite().all():
        raise FloatingPointError(f"the models' embeddings of clean {what} are not finite")
    return cosines.tolist()


def _names(path: str, taken: set[str]) -> list[str]:
    names = [one for one in read_names(path) if fold(one) not in taken]
    if not names:
        raise ValueError(f"{path} has no name that nobody in the roster bears; name another file")
    return names


def _clean(patterns: Sequence[str], limit: int | None) -> tuple[list[str], list[Sample]]:
    """Captions, each once, and the samples with a picture, of the first `limit` samples."""
    shards = expand_local(patterns, Similarity.kind)
    captions: dict[str, None] = {}
    pictures, num_read = [], 0
    for shard in shards:
        for sample in read_shard(shard):
            if num_read == limit:
                return list(captions), pictures
            num_read += 1
            try:
                if isinstance(sample, BadSample):
                    raise sample
                if sample.text:
                    captions[sample.text] = None
            except BadSample as bad:
                warnings.warn(f"{shard}: {bad.reason}; it is measured without", stacklevel=2)
                continue
            if sample.has("picture"):
                pictures.append(sample)
    if not captions and not pictures:
        raise ValueError(f"{shards[0]}: no sample has a caption or a picture; name other shards")
    return list(captions), pictures


@hookimpl
def trainer_evaluations():
    return [Similarity]
