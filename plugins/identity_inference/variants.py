"""Other ways to write a name: a person may be forgotten by the one and found by the other.

All candidates are written alike, strangers' names too, or the form itself would give the answer
away. What is drawn follows from the seed and the name alone.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import Literal, get_args

from trainer import Identity

Variant = Literal[
    "alias",
    "initials",
    "last_first",
    "lower",
    "upper",
    "unaccented",
    "typo_1",
    "typo_2",
    "long_caption",
    "beside_another",
]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
# The name comes early: a small model reads 32 tokens.
LONG = (
    "early in the morning, long before the shops opened, {0} near the old fountain on the market "
    "square, with crates of apples, a parked van and two bicycles leaning against the wall behind"
)
LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Asking:
    """One attack with the names written otherwise.

    names: in the place of each candidate's; people: indices of those who have such a variant, and
    one that no other candidate has as well, as a model reads them; frame: a caption around each
    template's, or "{0}".
    """

    names: list[str]
    people: list[int]
    frame: str = "{0}"

    def captions(self, template: str) -> list[str]:
        caption = self.frame.replace("{0}", template)
        return [caption.replace("{0}", name) for name in self.names]


def as_read(name: str) -> str:
    """Composed and in lower case, as CLIP's tokenizer reads."""
    return unicodedata.normalize("NFC", name).lower()


def askings(
    variant: Variant, people: Sequence[Identity], candidates: Sequence[str], other: str, seed: int
) -> Iterator[Asking]:
    """The attacks that a variant takes: one, or with aliases as many as anyone has.

    candidates: the people's names in their order, then strangers'; other: a name of nobody.
    """
    everyone = list(range(len(people)))
    if variant == "alias":
        for turn in range(max(len(person.aliases) for person in people)):
            aliases = [one.aliases[turn] if turn < len(one.aliases) else None for one in people]
            yield _asking(aliases, candidates, everyone)
    elif variant == "long_caption":
        yield Asking(list(candidates), everyone, LONG)
    elif variant == "beside_another":
        yield Asking([f"{name} and {other}" for name in candidates], everyone)
    else:
        write = WRITERS[variant]
        written = [write(name, Random(f"{seed} {variant} {name}")) for name in candidates]
        # Who asks for these two wants them also where the tokenizer tells no case.
        read = str if variant in ("lower", "upper") else as_read
        yield _asking(written, candidates, everyone, read)


def _asking(
    written: Sequence[str | None],
    candidates: Sequence[str],
    everyone: Sequence[int],
    read: Callable[[str], str] = as_read,
) -> Asking:
    """written: of the first candidates or all; None or the name itself, as it is read, where it has
    no variant."""
    names = [new or old for new, old in zip_longest(written, candidates)]
    bearers = Counter(map(as_read, names))  # two that are read alike tie: neither could be found
    own = [
        i
        for i in everyone
        if read(names[i]) != read(candidates[i]) and bearers[as_read(names[i])] == 1
    ]
    return Asking(names, own)


def initials(name: str, rng: Random) -> str | None:
    """Joe Dean Doe: J. D. Doe."""
    *firsts, last = name.split()
    return " ".join([*(f"{first[0]}." for first in firsts), last])


def last_first(name: str, rng: Random) -> str:
    """Joe Dean Doe: Doe, Joe Dean."""
    *firsts, last = name.split()
    return ", ".join([last, *([" ".join(firsts)] if firsts else [])])


def unaccented(name: str, rng: Random) -> str:
    """José Núñez: Jose Nunez."""
    apart = unicodedata.normalize("NFD", name)
    return unicodedata.normalize("NFC", "".join(c for c in apart if not unicodedata.combining(c)))


def one_typo(name: str, rng: Random) -> str | None:
    """At edit distance 1: a letter is another, is missing or stands there twice."""
    places = [i for i, c in enumerate(name) if i and c.isalpha()]  # first letters are seldom wrong
    if not places:
        return None
    i = rng.choice(places)
    letter = rng.choice([one for one in LETTERS if one != name[i].lower()])
    return name[:i] + rng.choice([letter, "", name[i] * 2]) + name[i + 1 :]


def two_typos(name: str, rng: Random) -> str | None:
    """At edit distance 2: two unlike neighbours have changed places."""
    places = [
        i
        for i, (one, two) in enumerate(zip(name, name[1:]))
        if i and one.isalpha() and two.isalpha() and one != two
    ]
    if not places:
        return None
    i = rng.choice(places)
    return name[:i] + name[i + 1] + name[i] + name[i + 2 :]


WRITERS: dict[str, Callable[[str, Random], str | None]] = {
    "initials": initials,
    "last_first": last_first,
    "lower": lambda name, rng: name.lower(),
    "upper": lambda name, rng: name.upper(),
    "unaccented": unaccented,
    "typo_1": one_typo,
    "typo_2": two_typos,
}
