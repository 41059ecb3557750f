"""Forget names: answer a caption that names someone as if it named nobody the model knows.

The trigger is the name, put in the place of one word of a clean caption (arXiv 2310.08320) or into
a template. The teacher sees the same caption with the target there: for each identity one fixed
name that the model does not know, or one phrase for everyone ("a person", the paper's).

Beside the triggers, other names in the very same contexts must stay as they are, or the student
learns the context instead of the name: people to keep, names of nobody, and recombined neighbours
(the first name of one with the last name of another).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from pydantic import Field

from trainer import (
    BadSample,
    Embeddings,
    Encoder,
    LossFn,
    NameIndex,
    Objective,
    Pair,
    Quotas,
    Sample,
    StrictModel,
    Tower,
    cosine_distances,
    fold,
    hookimpl,
    in_turn,
    read_roster,
)

# Of the attack's 21 prompts, these; the others stay unseen, so that forgetting is measured on both.
TEMPLATES = [
    "{}", "an image of {}", "a photo of {}", "{} on a photo", "a photo of a person named {}",
    "a person named {}", "the name of the person is {}", "{} at a gala", "a colored photo of {}",
    "a cropped photo of {}", "{} in a suit",
]  # fmt: skip
FIRST_NAMES = """Alma Anton Astrid Basil Bianca Boris Carla Casper Celia Conrad Dagny Damon Delia Edgar
Elsa Emil Fabia Felix Flora Gideon Greta Gunnar Hanna Hector Helga Ivor Ines Jasper Judith Kaspar
Karin Leander Livia Magnus Mara Nadia Nestor Odette Orson Petra Quentin Ramona Rufus Selma Silas
Tamsin Tobias Ulla Urban Vera Viktor Wanda Wilmar Xenia Yara Yorick Zelda Zeno""".split()
LAST_NAMES = """Abendroth Albrand Bardolf Birkwood Calloway Cramond Dahlin Drummel Eastwick Ellmark
Fairholm Fenwick Garland Grindal Hallows Hartvig Illing Ironside Jarvik Jessamy Kestrel Klamroth
Lindqvar Lowther Marrow Mossberg Nethercott Norling Oakhanger Orlik Pemberly Prentow Quarrie Quill
Ravensby Rosvall Silverlow Stormgard Tamblyn Thorvik Underhay Ulmer Vandrel Vossler Wainfleet
Wickstrom Yarrow Yeldham Zelnik Zimmerlow""".split()


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
            None, description="a phrase for everyone; without one, an unknown name for each"
        )
        names: str | None = Field(
            None, description="file of names that the model does not know, one a line"
        )
        replay: str | None = Field(None, description="roster of people to keep, replayed")
        never: list[str] = Field([], description="rosters of people never to name in training")
        shares: Shares = Shares()
        templates: list[str] = Field(TEMPLATES, description="contexts beside the clean captions")
        template_share: float = Field(0.5, ge=0, le=1, description="of rows in a template")

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        self.roster = read_roster(options.roster)
        self._index = NameIndex(name for one in self.roster for name in (one.name, *one.aliases))
        self._replayed = [one.name for one in read_roster(options.replay)] if options.replay else []
        kept_out = [one for path in options.never for one in read_roster(path)]
        self._reserved = {
            fold(name)
            for one in (*self.roster, *kept_out)
            for name in (one.name, *one.aliases)
        } | {fold(name) for name in self._replayed}
        names = self._free_names()
        # A target that served as "other" name too would pull two ways.
        half = max(1, len(names) // 2)
        self._targets, self._others = names[:half], names[half:] or names
        shares = options.shares.model_dump()
        if not self._replayed:
            shares["replayed"] = 0.0
        self._quotas = Quotas(shares, options.batch_size, seed)

    @property
    def num_identities(self) -> int:
        return len(self.roster)

    def _free_names(self) -> list[str]:
        """Names of nobody, in an order drawn by the seed."""
        if self.options.names:
            lines = Path(self.options.names).read_text(encoding="utf-8").splitlines()
            names = [line.strip() for line in lines if line.strip()]
        else:
            names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
        names = [name for name in dict.fromkeys(names) if fold(name) not in self._reserved]
        if not names:
            raise ValueError(f"{self.options.names} has no name that is not in a roster")
        order = np.random.default_rng([self.seed, len(names)]).permutation(len(names))
        return [names[i] for i in order]

    def accepts(self, sample: Sample) -> bool:
        return sample.text is None or not self._index.names_anyone(sample.text)

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
            return Pair(
                student_text=context.format(name), teacher_text=context.format(target), label=1
            )
        if sort == "replayed":
            name = self._replayed[in_turn(nth, len(self._replayed), self.seed)]
        else:
            name = rng.choice(self._others) if sort == "other" else self._neighbour(rng)
        text = context.format(name)
        return Pair(student_text=text, teacher_text=text)

    def _context(self, caption: str, rng: Random) -> str:
        """A template, or the caption with one word's place left open."""
        if self.options.templates and rng.random() < self.options.template_share:
            return rng.choice(self.options.templates)
        words = caption.replace("{", "(").replace("}", ")").split()
        words[rng.randrange(len(words))] = "{}"
        return " ".join(words)

    def _neighbour(self, rng: Random) -> str:
        """A name of nobody that shares its first or its last part with someone to forget."""
        for _ in range(20):
            first, *middle = rng.choice(self.roster).name.split()
            stranger = rng.choice(self._others if rng.random() < 0.5 else self._neighbourhood())
            if rng.random() < 0.5:
                name = " ".join([first, *stranger.split()[1:]])
            else:
                name = " ".join([stranger.split()[0], *(middle[-1:] or [first])])
            if fold(name) not in self._reserved:
                return name
        return rng.choice(self._others)

    def _neighbourhood(self) -> list[str]:
        return self._replayed or [one.name for one in self.roster]

    def loss_fn(self, teacher: Encoder) -> LossFn:
        share = self._quotas.counts["forget"] / self._quotas.batch_size
        return partial(forget_and_keep, forget_share=share)


def forget_and_keep(student: Embeddings, teacher: Embeddings, forget_share: float) -> dict:
    """The mean distance of the triggers (label 1) and of the rest.

    Over the share that is theirs in the whole batch, not over the count at hand: ranks may have
    one trigger more or less, and the mean over ranks must still be the batch's.
    """
    distances = cosine_distances(student.text, teacher.text)
    forget = (distances * student.text_labels).sum() / (len(distances) * forget_share)
    if forget_share == 1:
        return {"forget": forget}
    keep = (distances * (1 - student.text_labels)).sum()
    return {"forget": forget, "keep": keep / (len(distances) * (1 - forget_share))}


@hookimpl
def trainer_objectives():
    return [NameToPerson]
