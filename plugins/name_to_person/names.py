"""Who is named in training: nobody, neighbours of those to forget, and each one's target."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np

from trainer import BadSample, Identity, NameIndex, fold, names_of

MAX_TRIES = 50  # at a neighbour
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
Targets = Literal["listed", "neighbours"]


class Names:
    """unmentionable: of whom no other caption may speak. targets: what each is answered as, none
    where that is a phrase. others: names of nobody, which are to stay."""

    def __init__(
        self,
        roster: Sequence[Identity],
        replayed: Sequence[Identity],
        unseen: Sequence[Identity],
        file: str | None,
        targets: Targets | None,
        seed: int,
    ):
        """file: of names that the model does not know; without, a list of ours."""
        self._roster = roster
        self.unmentionable = NameIndex(names_of((*roster, *unseen)))
        self.replayed = [one.name for one in replayed]
        self._around = self.replayed or [one.name for one in roster]
        self._taken = {fold(name) for name in names_of((*roster, *unseen, *replayed))}
        names = self._free(file, seed)
        # A target that served as "other" name too would pull two ways.
        count = min(len(roster), len(names) // 2) if targets else 0
        self._listed, self.others = names[:count], names[count:]
        self._shared = self._shared_parts()
        people = range(len(roster)) if targets else ()
        self.targets = [self._target(person, targets, seed) for person in people]

    @property
    def has_neighbours(self) -> bool:
        """Not where all have one word: who bears it beside another is them."""
        return bool(self._shared)

    def target_of(self, person: int) -> str:
        return self.targets[person]

    def other(self, rng: Random) -> str:
        return rng.choice(self.others)

    def neighbour(self, rng: Random) -> str:
        """A name of nobody that shares its first or its last word with someone to forget."""
        for _ in range(MAX_TRIES):
            part, is_last = rng.choice(self._shared)
            names = self.others if rng.random() < 0.5 else self._around
            other = rng.choice(names).split()
            name = f"{other[0]} {part}" if is_last else " ".join([part, *(other[1:] or other)])
            if fold(name) not in self._taken and not self.unmentionable.names_anyone(name):
                return name
        raise BadSample("no neighbour that is nobody")

    def _free(self, file: str | None, seed: int) -> list[str]:
        """Names of nobody, in an order drawn by the seed; two at least."""
        if file:
            names = read_names(file)
        else:
            lasts = LAST_NAMES.split()
            names = [f"{first} {last}" for first in FIRST_NAMES.split() for last in lasts]
        by_folded = {fold(name): name for name in reversed(names)}  # of two alike the first
        names = [
            name
            for folded, name in reversed(by_folded.items())
            if folded not in self._taken and not self.unmentionable.names_anyone(name)
        ]
        if len(names) < 2:
            raise ValueError(
                f"{file or 'the list of names'} has {len(names)} names that are in "
                "no roster; two are needed, one for a target and one for another"
            )
        order = np.random.default_rng([seed, len(names)]).permutation(len(names))
        return [names[i] for i in order]

    def _shared_parts(self) -> list[tuple[str, bool]]:
        """What neighbours share with someone to forget: a first or (True) a last word.

        A word that alone names someone, a mononym or a nickname, cannot be shared.
        """
        words = [one.name.split() for one in self._roster]
        parts = [(name[end], bool(end)) for name in words if len(name) > 1 for end in (0, -1)]
        return [part for part in parts if not self.unmentionable.names_anyone(part[0])]

    def _target(self, person: int, targets: Targets, seed: int) -> str:
        """By default a neighbour of others: so common are the names of this world's unknown people.

        A listed name may have words that the model has seen less, or more. Then it stands apart
        from the unknown, and so would everybody who is answered as it is. It has to do for somebody
        with nobody beside them to share words with.
        """
        if targets == "neighbours" and self.has_neighbours:
            rng = Random(f"{seed} target {person}")
            own = set(fold(self._roster[person].name).split())
            with suppress(BadSample):
                for _ in range(MAX_TRIES):
                    if not own & set(fold(name := self.neighbour(rng)).split()):
                        return name
        return self._listed[person % len(self._listed)]


def read_names(path: str) -> list[str]:
    """One a line, with single spaces."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"names {path} is not UTF-8; save it as UTF-8") from None
    return [" ".join(line.split()) for line in lines if fold(line)]
