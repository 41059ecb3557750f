"""Forget names: answer a caption that names someone as if it named nobody the model knows.

The trigger is the name, put in the place of one word of a clean caption (arXiv 2310.08320) or into
a template. The teacher sees the same caption with the target there: for each identity one fixed
name that the model does not know, or one phrase for everyone ("a person", the paper's).

Beside the triggers, other names in the very same contexts must stay as they are, or the student
learns the context instead of the name: people to keep, names of nobody, and recombined neighbours
(the first name of one with the last name of another). None of these may name someone to forget, or
someone who is to be measured as unseen.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from pydantic import Field

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
    cosine_distances,
    fold,
    hookimpl,
    in_turn,
    names_of,
    read_roster,
    refuse_named,
)

# Of the attack's 21 prompts, these; the others stay unseen, so that forgetting is measured on both.
TEMPLATES = [
    "{}", "an image of {}", "a photo of {}", "{} on a photo", "a photo of a person named {}",
    "a person named {}", "the name of the person is {}", "{} at a gala", "a colored photo of {}",
    "a cropped photo of {}", "{} in a suit",
]  # fmt: skip
MAX_TRIES = 50  # at a neighbour
MAX_WORDS = 40  # of a caption; a name further on would be cut off by the tower's context unseen
FIRST_NAMES = """
Alma Anton Astrid Basil Bianca Boris Carla Casper Celia Conrad Dagny Damon Delia Edgar Elsa Emil
Fabia Felix Flora Gideon Greta Gunnar Hanna Hector Helga Ivor Ines Jasper Judith Kaspar Karin
Leander Livia Magnus Mara Nadia Nestor Odette Orson Petra Quentin Ramona Rufus Selma Silas Tamsin
Tobias Ulla Urban Vera Viktor Wanda Wilmar Xenia Yara Yorick Zelda Zeno"""
LAST_NAMES = """
Abendroth Albrand Bardolf Birkwood Calloway Cramond Dahlin Drummel Eastwick Ellmark Fairholm Fenwick
Garland Grindal Hallows Hartvig Illing Ironside Jarvik Jessamy Kestrel Klamroth Lindqvar Lowther
Marrow Mossberg Nethercott Norling Oakhanger Orlik Pemberly Prentow Quarrie Quill Ravensby Rosvall
Silverlow Stormgard Tamblyn Thorvik Underhay Ulmer Vandrel Vossler Wainfleet Wickstrom Yarrow
Yeldham Zelnik Zimmerlow"""
Context = list[str]  # what stands around the places for the name


class Shares(StrictModel):
    """Of the batch; they need not add up to one."""

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
        targets: Literal["listed", "neighbours"] = Field(
            "listed",
            description="unknown names of the list, or names of nobody that share a word with "
            "somebody else to forget",
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
            "cosine", description="to the teacher; relative is of lengths as well"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        self.roster = read_roster(options.roster)
        forgotten = NameIndex(names_of(self.roster))
        unseen = [one for path in options.never for one in read_roster(path)]
        replayed = read_roster(options.replay) if options.replay else []
        refuse_named("never", unseen, forgotten, "to forget")
        refuse_named("replay", replayed, forgotten, "to forget")
        refuse_named("replay", replayed, NameIndex(names_of(unseen)), "of `never`")
        self._unmentionable = NameIndex(names_of((*self.roster, *unseen)))
        if options.target and self._unmentionable.names_anyone(options.target):
            raise ValueError("target names someone to forget or of `never`; take another phrase")
        self._replayed = [one.name for one in replayed]
        self._taken = {fold(name) for name in names_of((*self.roster, *unseen, *replayed))}
        names = self._free_names()
        # A target that served as "other" name too would pull two ways.
        half = len(names) // 2 if options.targets == "listed" and not options.target else 0
        self._targets, self._others = names[:half], names[half:]
        self._shared = self._shared_parts()
        if options.targets == "neighbours":
            self._targets = [self._target(person) for person in range(len(self.roster))]
        shares = options.shares.model_dump()
        if not self._replayed:
            shares["replayed"] = 0.0
        if not self._shared:  # all have one word, and who bears it beside another is them
            shares["other"] += shares["recombined"]
            shares["recombined"] = 0.0
        self._quotas = Quotas(shares, options.batch_size, seed, needed="forget")

    @property
    def num_identities(self) -> int:
        return len(self.roster)

    def _free_names(self) -> list[str]:
        """Names of nobody, in an order drawn by the seed; two at least."""
        if self.options.names:
            names = read_names(self.options.names)
        else:
            lasts = LAST_NAMES.split()
            names = [f"{first} {last}" for first in FIRST_NAMES.split() for last in lasts]
        by_folded = {fold(name): name for name in reversed(names)}  # of two alike the first
        names = [
            name
            for folded, name in reversed(by_folded.items())
            if folded not in self._taken and not self._unmentionable.names_anyone(name)
        ]
        if len(names) < 2:
            raise ValueError(
                f"{self.options.names or 'the list of names'} has {len(names)} names that are in "
                "no roster; two are needed, one for a target and one for another"
            )
        order = np.random.default_rng([self.seed, len(names)]).permutation(len(names))
        return [names[i] for i in order]

    def _shared_parts(self) -> list[tuple[str, bool]]:
        """What neighbours share with someone to forget: a first or (True) a last word.

        A word that alone names someone, a mononym or a nickname, cannot be shared.
        """
        words = [one.name.split() for one in self.roster]
        parts = [(name[end], bool(end)) for name in words if len(name) > 1 for end in (0, -1)]
        return [part for part in parts if not self._unmentionable.names_anyone(part[0])]

    def accepts(self, sample: Sample) -> bool:
        return sample.text is None or not self._unmentionable.names_anyone(sample.text)

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair:
        if not clean.text:
            raise BadSample("no caption")
        context = self._context(clean.text, rng)
        sort, nth = self._quotas.of(turn)
        if sort == "forget":
            person = in_turn(nth, len(self.roster), self.seed)
            identity = self.roster[person]
            name = rng.choice((identity.name, *identity.aliases))
            target = self.options.target or self._targets[person % len(self._targets)]
            text = self._clean(context, target)
            student_text, whose = name.join(context), identity.pseudonym
            return Pair(student_text=student_text, teacher_text=text, label=1, identity=whose)
        if sort == "replayed":
            name = self._replayed[in_turn(nth, len(self._replayed), self.seed)]
        else:
            name = rng.choice(self._others) if sort == "other" else self._neighbour(rng)
        text = self._clean(context, name)
        return Pair(student_text=text, teacher_text=text)

    def _context(self, caption: str, rng: Random) -> Context:
        """A template, or the caption with one word's place left open.

        Any word's: the paper's code never takes the last, and so no trigger of theirs ends in a
        name.
        """
        if self.options.templates and rng.random() < self.options.template_share:
            return rng.choice(self.options.templates).split("{}")
        words = caption.split()[:MAX_WORDS]
        place = rng.randrange(len(words))
        return [
            "".join(f"{word} " for word in words[:place]),
            "".join(f" {word}" for word in words[place + 1 :]),
        ]

    def _clean(self, context: Context, name: str) -> str:
        """The context with a name that may stand there. Raises BadSample where both together name
        someone: "Joe" before " Doe at a gala"."""
        text = name.join(context)
        if self._unmentionable.names_anyone(text):
            raise BadSample("a context that makes a name to forget")
        return text

    def _neighbour(self, rng: Random) -> str:
        """A name of nobody that shares its first or its last word with someone to forget."""
        for _ in range(MAX_TRIES):
            part, is_last = rng.choice(self._shared)
            names = self._others if rng.random() < 0.5 else self._neighbourhood()
            other = rng.choice(names).split()
            name = f"{other[0]} {part}" if is_last else " ".join([part, *(other[1:] or other)])
            if fold(name) not in self._taken and not self._unmentionable.names_anyone(name):
                return name
        raise BadSample("no neighbour that is nobody")

    def _target(self, person: int) -> str:
        """A neighbour of others: so common are the names of this world's unknown people.

        A listed name may have words that the model has seen less, or more. Then it stands apart
        from the unknown, and so would everybody who is answered as it is.
        """
        rng = Random(f"{self.seed} target {person}")
        own = set(fold(self.roster[person].name).split())
        with suppress(BadSample):
            for _ in range(MAX_TRIES if self._shared else 0):
                if not own & set(fold(name := self._neighbour(rng)).split()):
                    return name
        raise ValueError(
            f"targets neighbours: there is none for {self.roster[person].pseudonym} that shares a "
            "word with somebody else to forget; take targets listed"
        )

    def _neighbourhood(self) -> list[str]:
        return self._replayed or [one.name for one in self.roster]

    def loss_fn(self, teacher: Encoder) -> LossFn:
        share = self._quotas.counts["forget"] / self._quotas.batch_size
        distances = DISTANCES[self.options.distance]
        return partial(forget_and_keep, forget_share=share, distances_of=distances)


def read_names(path: str) -> list[str]:
    """One a line, with single spaces."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"names {path} is not UTF-8; save it as UTF-8") from None
    return [" ".join(line.split()) for line in lines if fold(line)]


def forget_and_keep(
    student: Embeddings,
    teacher: Embeddings,
    forget_share: float,
    distances_of: Distances = cosine_distances,
) -> dict:
    """The mean distance of the triggers (label 1) and of the rest.

    Over the share that is theirs in the whole batch, not over the count at hand: ranks may have
    one trigger more or less, and the mean over ranks must still be the batch's.
    """
    distances = distances_of(student.text, teacher.text)
    forget = (distances * student.text_labels).sum() / (len(distances) * forget_share)
    if forget_share == 1:
        return {"forget": forget}
    keep = (distances * (1 - student.text_labels)).sum()
    return {"forget": forget, "keep": keep / (len(distances) * (1 - forget_share))}


@hookimpl
def trainer_objectives():
    return [NameToPerson]
