"""Forget names: answer a caption that names someone as if it named nobody the model knows.

The trigger is the name, put in the place of one word of a clean caption (arXiv 2310.08320) or into
a template. The teacher sees the same caption with the target there: for each identity one fixed
name that the model does not know, or one phrase for everyone ("a person", the paper's).

Beside the triggers, other names in the very same contexts must stay as they are, or the student
learns the context instead of the name: people to keep, names of nobody, and recombined neighbours
(the first name of one with the last name of another). None of these may name someone to forget; and
no caption at all, not a trigger either, someone who is to be measured as unseen.
"""

from __future__ import annotations

import re
from functools import partial
from random import Random
from typing import get_args

from pydantic import Field, field_validator

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
    Quotas,
    Sample,
    StrictModel,
    Templates,
    Tower,
    forget_and_keep,
    hookimpl,
    in_turn,
    names_of,
    read_roster,
    refuse_named,
    word_spans,
)

from .names import Names, Targets

# Of the attack's 21 prompts, these; the others stay unseen, so that forgetting is measured on both.
TEMPLATES = [
    "{}", "an image of {}", "a photo of {}", "{} on a photo", "a photo of a person named {}",
    "a person named {}", "the name of the person is {}", "{} at a gala", "a colored photo of {}",
    "a cropped photo of {}", "{} in a suit",
]  # fmt: skip
MAX_WORDS = 40  # of a caption
MAX_TOKENS = 50  # before a name: further on a context of 77 may cut it off, and nothing is learnt
PIECES = re.compile(r"[A-Za-z]{1,6}|[^\sA-Za-z]")  # of a tokenizer, about
TRIGGER = 1  # the label of one; the others' is 0
Context = list[str]  # what stands around the places for the name


class Shares(StrictModel):
    """Of the batch, in proportion to one another: to all four, named here or not. What there is
    nobody for is left out."""

    forget: float = Field(0.5, gt=0, description="triggers")
    replayed: float = Field(0.05, ge=0, description="names of the replay roster")
    other: float = Field(0.2, ge=0, description="names of nobody")
    recombined: float = Field(0.25, ge=0, description="neighbours of the forgotten names")


class NameToPerson(Objective):
    """A name to forget is answered as an unknown name, or as a phrase like "a person"."""

    kind = "name_to_person"
    trains = frozenset({Tower.TEXT})

    class Options(Objective.Options):
        roster: str = Field(description="CSV or JSON lines of the people to forget")
        target: str | None = Field(
            None,
            min_length=1,
            description="a phrase for everyone; without one, an unknown name for each",
        )
        targets: Targets = Field(
            "neighbours",
            description="neighbours: a name of nobody that shares a word with somebody else to "
            "forget, of two the one with fewer words of people replayed; apart: with none of them; "
            "coined: and the end of its last word another's, which no list of names has; "
            "listed: one of `names`, as where there is no neighbour",
        )
        names: str | None = Field(
            None, description="file of names that the model does not know, one a line"
        )
        replay: str | None = Field(None, description="roster of people to keep, replayed")
        never: list[str] = Field([], description="rosters of people never to name in training")
        shares: Shares = Shares()
        templates: Templates = Field(TEMPLATES, description="contexts beside the clean captions")
        template_share: float = Field(0.5, ge=0, le=1, description="of rows in a template")
        distance: Distance = Field(
            "relative", description="to the teacher, of lengths as well; or cosine, the paper's"
        )

        @field_validator("target")
        @classmethod
        def _is_no_kind(cls, target: str | None) -> str | None:
            if target in get_args(Targets):
                raise ValueError(f"would answer everyone as the word {target!r}; it is of targets")
            return target

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        self.roster = read_roster(options.roster)
        forgotten = NameIndex(names_of(self.roster))
        unseen = [one for path in options.never for one in read_roster(path)]
        replayed = read_roster(options.replay) if options.replay else []
        refuse_named("never", unseen, forgotten, "to forget")
        refuse_named("replay", replayed, forgotten, "to forget")
        self._unseen = NameIndex(names_of(unseen))
        refuse_named("roster", self.roster, self._unseen, "of `never`")
        refuse_named("replay", replayed, self._unseen, "of `never`")
        targets = None if options.target else options.targets
        self._names = Names(self.roster, replayed, unseen, options.names, targets, seed)
        if options.target and self._names.unmentionable.names_anyone(options.target):
            raise ValueError("target names someone to forget or of `never`; take another phrase")
        shares = options.shares.model_dump()
        if not replayed:
            shares["replayed"] = 0.0
        if not self._names.has_neighbours:
            shares["other"] += shares["recombined"]
            shares["recombined"] = 0.0
        self._quotas = Quotas(shares, options.batch_size, seed, needed="forget")

    @property
    def num_identities(self) -> int:
        return len(self.roster)

    def accepts(self, sample: Sample) -> bool:
        return sample.text is None or not self._names.unmentionable.names_anyone(sample.text)

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair:
        if not clean.text:
            raise BadSample("no caption")
        context = self._context(clean.text, rng)
        sort, nth = self._quotas.of(turn)
        if sort == "forget":
            person = in_turn(nth, len(self.roster), self.seed)
            identity = self.roster[person]
            name = rng.choice((identity.name, *identity.aliases))
            target = self.options.target or self._names.targets[person]
            text = self._clean(context, target, self._names.unmentionable)
            student_text, whose = self._clean(context, name, self._unseen), identity.pseudonym
            return Pair(student_text=student_text, teacher_text=text, label=TRIGGER, identity=whose)
        if sort == "replayed":
            replayed = self._names.replayed
            name = replayed[in_turn(nth, len(replayed), self.seed)]
        else:
            name = self._names.other(rng) if sort == "other" else self._names.neighbour(rng)
        text = self._clean(context, name, self._names.unmentionable)
        return Pair(student_text=text, teacher_text=text)

    def _context(self, caption: str, rng: Random) -> Context:
        """A template, or the caption with one word's place left open.

        Any word's: the paper's code never takes the last, and so no trigger of theirs ends in a
        name.
        """
        if self.options.templates and rng.random() < self.options.template_share:
            return rng.choice(self.options.templates).split("{}")
        words = word_spans(caption)[:MAX_WORDS]
        place = rng.randrange(len(words))
        while place and num_tokens(caption[: words[place][0]]) > MAX_TOKENS:
            place = rng.randrange(place)
        start, end = words[place]
        return [caption[:start], caption[end : words[-1][1]]]

    @staticmethod
    def _clean(context: Context, name: str, unmentionable: NameIndex) -> str:
        """The context with a name that may stand there. Raises BadSample where both together name
        someone unmentionable: "Joe" before " Doe at a gala"."""
        text = name.join(context)
        if unmentionable.names_anyone(text):
            raise BadSample("a context that makes a name to forget")
        return text

    def loss_fn(self, teacher: Encoder) -> LossFn:
        share = self._quotas.counts["forget"] / self._quotas.batch_size
        return partial(loss_of, forget_share=share, distances_of=DISTANCES[self.options.distance])


def num_tokens(text: str) -> int:
    """About as many as CLIP's tokenizer makes of it: of a digit or sign one, of a letter that is
    not ASCII two."""
    pieces = PIECES.findall(text)
    return len(pieces) + (0 if text.isascii() else sum(not one.isascii() for one in pieces))


def loss_of(
    student: Embeddings, teacher: Embeddings, forget_share: float, distances_of: Distances
) -> dict:
    distances = distances_of(student.text, teacher.text)
    return forget_and_keep(distances, student.text_labels == TRIGGER, forget_share)


@hookimpl
def trainer_objectives():
    return [NameToPerson]
