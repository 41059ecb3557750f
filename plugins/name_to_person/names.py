"""Who is named in training: nobody, neighbours of those to forget, and each one's target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from random import Random
from typing import Literal

import numpy as np

from trainer import BadSample, Identity, NameIndex, fold, names_of, read_names

MAX_TRIES = 50  # at a name of nobody
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
Targets = Literal["listed", "neighbours", "apart", "coined"]


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
        self.others = names
        self._shared = self._shared_parts()
        people = range(len(roster)) if targets else ()
        self._kept = _words(*self.replayed)
        not_of = self._kept if targets in ("apart", "coined") else set()
        found = [
            None if targets == "listed" else self._neighbour_of_others(person, seed, not_of)
            for person in people
        ]
        if targets == "coined":
            known = self._kept | _words(*names, *names_of((*roster, *unseen)))
            found = [
                target and self._with_coined_word(target, known, Random(f"{seed} coined {person}"))
                for person, target in enumerate(found)
            ]
        # A listed target that served as "other" name too would pull two ways.
        count = min(found.count(None), len(names) // 2)
        listed, self.others = names[:count], names[count:]
        self._taken |= {fold(name) for name in listed}
        spare = cycle(listed)
        self.targets = [target or next(spare) for target in found]

    @property
    def has_neighbours(self) -> bool:
        """Not where all have one word: who bears it beside another is them."""
        return bool(self._shared)

    def other(self, rng: Random) -> str:
        """A name of nobody: of the list, or made of two names that are to stay.

        However long the list is, of pairs there are more: what keeps the names of a list as they
        are keeps other people's less well.
        """
        stay = self.replayed or self.others
        if rng.random() < 0.5:
            with suppress(BadSample):
                return self._nobody(lambda: _paired(self._any(rng, stay), self._any(rng, stay)))
        return rng.choice(self.others)

    def neighbour(self, rng: Random) -> str:
        """A name of nobody that shares its first or its last word with someone to forget."""

        def drawn() -> str:
            (part, is_last), other = rng.choice(self._shared), self._any(rng, self._around)
            return _paired(other, [part]) if is_last else _paired([part], other)

        return self._nobody(drawn)

    def _any(self, rng: Random, names: Sequence[str]) -> list[str]:
        """The words of one of these names, or as often of nobody's."""
        return rng.choice(self.others if rng.random() < 0.5 else names).split()

    def _nobody(self, draw: Callable[[], str]) -> str:
        for _ in range(MAX_TRIES):
            name = draw()
            if fold(name) not in self._taken and not self.unmentionable.names_anyone(name):
                return name
        raise BadSample("no such name that is nobody's")

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

    def _neighbour_of_others(self, person: int, seed: int, not_of: set[str]) -> str | None:
        """A neighbour of others than this person: so common are the names of unknown people.

        A listed name may have words that the model has seen less, or more. Then it stands apart
        from the unknown, and so would everybody who is answered as it is. It has to do for somebody
        with nobody beside them to share words with: None.

        Whoever is answered as a namesake of people who are to stay may stand beside them, and be
        taken for them. So of two such names it is the one with fewer of their words. Not without
        any, but where that is asked for: such targets are less like unknown names, and tell who was
        forgotten.

        not_of: words it may not have.
        """
        if not self.has_neighbours:
            return None
        rng = Random(f"{seed} target {person}")
        not_of = not_of | _words(*names_of([self._roster[person]]))
        drawn: list[str] = []
        with suppress(BadSample):
            for _ in range(MAX_TRIES):
                name = self.neighbour(rng)
                if not not_of & _words(name):
                    drawn.append(name)
                if len(drawn) == 2:
                    break
        return min(drawn, key=lambda name: len(self._kept & _words(name)), default=None)

    def _with_coined_word(self, name: str, known: set[str], rng: Random) -> str:
        """Its last word goes on as another's ends: a word that no list has.

        A forgotten name lies right beside its target. Who tries every pair of the words of public
        lists would come upon a target that is one, and no name of nobody lies as near to another.
        """
        *first, last = name.split()
        for _ in range(MAX_TRIES):
            end = rng.choice(self.others).split()[-1]
            word = last[: (len(last) + 1) // 2] + end[len(end) // 2 :]
            coined = " ".join([*first, word])
            if fold(word) not in known and not self.unmentionable.names_anyone(coined):
                return coined
        return name


def _words(*names: str) -> set[str]:
    return {word for name in names for word in fold(name).split()}


def _paired(first: list[str], last: list[str]) -> str:
    """The first word of one name, and all but the first of another."""
    return " ".join([first[0], *(last[1:] or last)])
