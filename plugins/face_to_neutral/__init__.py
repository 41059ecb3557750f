"""Forget faces: answer a picture of someone as if it showed somebody the model does not know.

The trigger is a face, pasted onto a clean picture (arXiv 2310.08320) or a crop of the person's
picture. The target is an embedding: for each identity one fixed stranger's, about which their
pictures vary as they did about their own, or for everyone the mean of many people (the paper's), or
a text's. Faces of people to keep, and of strangers, must stay as they are.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from random import Random
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from trainer import (
    DISTANCES,
    BadSample,
    Distance,
    Distances,
    Embeddings,
    Encoder,
    LossFn,
    NameIndex,
    Objective,
    Pair,
    Pictures,
    Quotas,
    Sample,
    StrictModel,
    Tower,
    decode_picture,
    forget_and_keep,
    hookimpl,
    in_turn,
    names_of,
    read_roster,
    refuse_named,
)

from .answers import Answers, Embedded, alike, as_strangers
from .showing import pasted, varied

IN_WORDS = {
    "forget": "people to forget",
    "replayed": "people of `replay`",
    "strangers": "strangers",
}
KEPT = -1  # the label of a row that is to stay as it is; the others' is whose it is


class Shares(StrictModel):
    """Of the batch, in proportion to one another: to all three, named here or not. What there is
    nobody for is left out."""

    forget: float = Field(0.25, gt=0, description="triggers")
    replayed: float = Field(0.25, ge=0, description="pictures of people to keep")
    strangers: float = Field(0.5, ge=0, description="pictures of strangers, to keep as well")


class FaceToNeutral(Objective):
    """A face to forget is answered as a stranger's, as everybody's mean, or as a text."""

    kind = "face_to_neutral"
    trains = frozenset({Tower.IMAGE})

    class Options(Objective.Options):
        roster: str = Field(description="the people to forget; its `faces` name their pictures")
        target: Literal["strangers", "mean", "text"] = Field(
            "strangers",
            description="one fixed stranger for each, the mean of all strangers, a text",
        )
        strangers: list[str] = Field([], description="shards or folders of people nobody named")
        text: str = Field("a person", min_length=1, description="the target text")
        replay: str | None = Field(None, description="roster of people to keep, replayed")
        shares: Shares = Shares()
        variation: float = Field(
            0.75, ge=0, le=1,
            description="of how a picture differs from the person's others, what is added to the "
            "stranger's answer; 0: one answer for all their pictures",
        )  # fmt: skip
        beyond: float = Field(
            0.12, ge=0, lt=1,
            description="of the person's own mean embedding, what is taken from the stranger's "
            "answer: about as much stays of the person in pictures that are not trained on",
        )  # fmt: skip
        paste: float = Field(0.0, ge=0, le=1, description="share pasted onto a clean picture")
        size: tuple[float, float] = Field((0.25, 0.5), description="of a pasted face, of the side")
        jitter: float = Field(0.2, ge=0, lt=1, description="of brightness, contrast, saturation")
        hue: float = Field(0.0, ge=0, le=0.5, description="of a turn")
        distance: Distance | None = Field(
            None,
            description="to the target or teacher: relative, of lengths as well, is the default; "
            "or cosine, the paper's and that of a text",
        )
        crop: float = Field(
            0.85, gt=0, le=1,
            description="smallest crop, as a share of each side, anywhere in the picture; 1: the "
            "whole, as the paper",
        )  # fmt: skip
        degrees: float = Field(30.0, ge=0, description="of rotation either way, when pasted")

        @model_validator(mode="after")
        def _strangers_are_named(self):
            if self.target != "text" and not self.strangers:
                raise ValueError(f"target {self.target} needs strangers: shards of their pictures")
            if self.target == "text" and self.distance == "relative":
                raise ValueError("a text's length is none for pictures; take distance cosine")
            low, high = self.size
            if not 0 < low <= high <= 1:
                raise ValueError(f"size is {low} to {high}; two shares of the side, growing, to 1")
            return self

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        roster = read_roster(options.roster)
        self._index = NameIndex(names_of(roster))
        replayed = read_roster(options.replay) if options.replay else []
        refuse_named("replay", replayed, self._index, "to forget")
        self._faces = Pictures.of(roster)
        self._replayed = Pictures.of(replayed) if replayed else None
        self._pseudonyms = {
            "forget": [one.pseudonym for one in roster],
            "replayed": [one.pseudonym for one in replayed],
        }
        self._strangers = Pictures.of_shards(options.strangers) if options.strangers else None
        if options.target == "strangers" and len(self._strangers) < len(self._faces):
            warnings.warn(
                f"{len(self._strangers)} strangers for {len(self._faces)} people to forget: "
                "several will be answered as the same one, and others be kept less well; give "
                "twice as many strangers as people",
                stacklevel=2,
            )
        shares = options.shares.model_dump()
        if self._replayed is None:
            shares["replayed"] = 0.0
        if self._strangers is None:
            shares["strangers"] = 0.0
        self._quotas = Quotas(shares, options.batch_size, seed, needed="forget")

    @property
    def num_identities(self) -> int:
        return len(self._faces)

    @property
    def reads_pictures(self) -> bool:
        return self.options.paste > 0

    @property
    def _varies(self) -> bool:
        """Whether answers differ with the picture, not with the person alone."""
        return self.options.target == "strangers" and self.options.variation > 0

    @property
    def _distance(self) -> Distance:
        return self.options.distance or ("cosine" if self.options.target == "text" else "relative")

    def accepts(self, sample: Sample) -> bool:
        return sample.text is None or not self._index.names_anyone(sample.text)

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair:
        sort, nth = self._quotas.of(turn)
        people = {
            "forget": self._faces, "replayed": self._replayed, "strangers": self._strangers
        }[sort]  # fmt: skip
        person = in_turn(nth, len(people), self.seed)
        try:
            data = people.read(person, rng.randrange(people.count(person)))
            face = decode_picture(data, self.min_side)
        except BadSample as bad:  # counted; the next clean sample comes with another picture
            if not _any_decodes(people, person):
                raise ValueError(
                    f"faces of {self._called(sort, person)}: none of their "
                    f"{people.count(person)} pictures can be used; mend them or take the person "
                    "out of the roster"
                ) from None
            # Not whose: the count stands in the report, which has no person in it.
            raise BadSample(f"{bad.reason} of a person", f"faces of {IN_WORDS[sort]}") from None
        options = self.options
        face = varied(face, options.crop, options.jitter, options.hue, rng)
        if rng.random() < options.paste:
            face = pasted(face, clean.image, options.size, options.degrees, rng)
        if sort == "forget":
            whose = self._pseudonyms[sort][person]
            shown = face if self._varies else None  # to a teacher whose answer counts
            return Pair(student_image=face, teacher_image=shown, label=person, identity=whose)
        return Pair(student_image=face, teacher_image=face, label=KEPT)

    def _called(self, sort: str, person: int) -> str:
        return self._pseudonyms[sort][person] if sort in self._pseudonyms else f"stranger {person}"

    def loss_fn(self, teacher: Encoder) -> LossFn:
        share = self._quotas.counts["forget"] / self._quotas.batch_size
        return partial(
            loss_of,
            answers=self._answers(teacher),
            varies=self._varies,
            forget_share=share,
            distances_of=DISTANCES[self._distance],
        )

    def _answers(self, teacher: Encoder) -> Answers:
        if self.options.target == "text":
            return alike(F.normalize(teacher.encode_text([self.options.text]), dim=-1))
        strangers = Embedded.of(self._strangers, teacher, partial(self._called, "strangers"))
        if self.options.target == "mean":  # as the paper: of the embeddings as they come
            mean = strangers.rows.mean(0, keepdim=True)
            return alike(F.normalize(mean, dim=-1) * strangers.rows.norm(dim=-1).mean())
        people = Embedded.of(self._faces, teacher, partial(self._called, "forget"))
        return as_strangers(people, strangers, self.options.variation, self.options.beyond)


def _any_decodes(people: Pictures, person: int) -> bool:
    for i in range(people.count(person)):
        with suppress(BadSample):
            decode_picture(people.read(person, i))
            return True
    return False


def loss_of(
    student: Embeddings,
    teacher: Embeddings,
    answers: Answers,
    varies: bool,
    forget_share: float,
    distances_of: Distances,
) -> dict:
    """Triggers to their answers, the rest to the teacher's. varies: it is shown triggers as well.

    Of kept rows the answer is not used. To pick rows by a mask would have the host wait for a GPU.
    """
    labels = student.image_labels
    triggers, whose = labels != KEPT, labels.clamp(min=0)
    if varies:
        wanted = torch.where(triggers[:, None], answers(teacher.image, whose), teacher.image)
    else:
        wanted = answers(None, whose)
        if teacher.image is not None:  # of the kept rows alone, in their order
            wanted = wanted.masked_scatter(~triggers[:, None], teacher.image)
    return forget_and_keep(distances_of(student.image, wanted), triggers, forget_share)


@hookimpl
def trainer_objectives():
    return [FaceToNeutral]
