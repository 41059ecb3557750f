"""Names that nobody bears, in pools that never share a full name."""

from __future__ import annotations

from itertools import product
from random import Random

ONSETS = "b br c d dr f g gr h j k l m n p r s st t tr v w z".split()
VOWELS = "a e i o u ai ea ie o a e".split()
CODAS = "l n r s th nd rt m".split()
WOMAN_ENDS = "a ia ine elle ana is".split()
MAN_ENDS = "o an us or ek ard".split()
LAST_ENDS = "er son wick ley man berg ford ston mark dale".split()


def _words(rng: Random, ends: list[str], count: int) -> list[str]:
    """Distinct words of two or three syllables, 4 to 9 letters."""
    words: dict[str, None] = {}
    while len(words) < count:
        stem = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        if rng.random() < 0.3:
            stem += rng.choice(VOWELS) + rng.choice("ldnr")
        word = (stem + rng.choice(ends)).title()
        if 4 <= len(word) <= 9:
            words[word] = None
    return list(words)


class Names:
    """All pools of a world; each is drawn once, in the order below, from the names left."""

    def __init__(self, seed: int, people: int):
        rng = Random(f"names {seed}")
        firsts = _words(rng, WOMAN_ENDS, 200), _words(rng, MAN_ENDS, 200)
        lasts = _words(rng, LAST_ENDS, 600)
        # Few parts for many people: everyone has neighbours who share a first or a last name.
        size = max(8, people // 2)
        self._taken: set[str] = set()
        known = [firsts[0][: size // 2], firsts[1][: size // 2]]
        self._people = {
            is_woman: self._shuffled(rng, known[0 if is_woman else 1], lasts[:size])
            for is_woman in (True, False)
        }
        self._rest = {
            is_woman: self._shuffled(rng, firsts[0 if is_woman else 1], lasts)
            for is_woman in (True, False)
        }

    @staticmethod
    def _shuffled(rng: Random, firsts: list[str], lasts: list[str]):
        names = [f"{first} {last}" for first, last in product(firsts, lasts)]
        rng.shuffle(names)
        return iter(names)

    def person(self, is_woman: bool) -> str:
        """A name of somebody in the world."""
        return self._next(self._people[is_woman])

    def nobody(self, count: int) -> list[str]:
        """Names of nobody, half women's and half men's."""
        return [self._next(self._rest[i % 2 == 0]) for i in range(count)]

    def _next(self, names) -> str:
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        return name
