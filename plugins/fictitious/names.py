"""Names that nobody bears, in pools that never share a full name."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

ONSETS = ["b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k"]
ONSETS += ["l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z"]
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ie", "o", "a", "e"]  # some more often
CODAS = ["l", "n", "r", "s", "th", "nd", "rt", "m"]
# So different that no name is both a woman's and a man's, or both a first and a last one.
WOMAN_ENDS = ["a", "ia", "ine", "elle", "ana", "is"]
MAN_ENDS = ["o", "an", "us", "or", "ek", "ard"]
LAST_ENDS = ["er", "son", "wick", "ley", "man", "berg", "ford", "ston", "mark", "dale"]
FIRSTS, LASTS, FEWEST = 200, 600, 32  # firsts: of women, and as many of men


@dataclass(frozen=True)
class Names:
    known: list[str]  # by number of the person
    unknown: list[str]
    distractors: list[str]  # of the attack
    other_names: list[str]  # free for training
    negatives: list[str]  # in captions without a picture


def draw_names(seed: int, known: Sequence[bool], unknown: Sequence[bool]) -> Names:
    """known, unknown: whether each person is a woman. In the pools every other name is one's."""
    # Few parts for many people: nearly everyone shares a first or a last name with somebody.
    parts = max(FEWEST, 5 * len(known) // 8)
    rng = Random(f"names {seed}")
    women = _words(rng, WOMAN_ENDS, max(FIRSTS, parts // 2))
    men = _words(rng, MAN_ENDS, max(FIRSTS, parts // 2))
    lasts = _words(rng, LAST_ENDS, max(LASTS, parts))
    somebody = {
        is_woman: _pairs(rng, firsts[: parts // 2], lasts[:parts])
        for is_woman, firsts in ((True, women), (False, men))
    }
    anybody = {
        is_woman: _pairs(rng, firsts, lasts) for is_woman, firsts in ((True, women), (False, men))
    }
    taken: set[str] = set()

    def take(names: Iterator[str]) -> str:
        name = next(name for name in names if name not in taken)
        taken.add(name)
        return name

    def nobody(count: int) -> list[str]:
        return [take(anybody[i % 2 == 0]) for i in range(count)]

    return Names(
        known=[take(somebody[is_woman]) for is_woman in known],
        unknown=[take(somebody[is_woman]) for is_woman in unknown],
        distractors=nobody(1000),
        other_names=nobody(2000),
        negatives=nobody(4000),
    )


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


def _pairs(rng: Random, firsts: list[str], lasts: list[str]) -> Iterator[str]:
    """Every first name with every last name, shuffled."""
    order = array("I", range(len(firsts) * len(lasts)))  # millions, for thousands of people
    rng.shuffle(order)
    return (f"{firsts[i // len(lasts)]} {lasts[i % len(lasts)]}" for i in order)
