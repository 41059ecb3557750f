"""What became of those who are near: people who share a name with someone to forget.

To forget "Joe Doe" is to move what "Joe" and "Doe" are made of. Measured are how far names moved,
1 - cos(student, teacher) over the prompts, and whether their bearers are still known, apart for
people who share a first name, a last word, or are among the `nearest` of someone to forget by the
original's embeddings; and beside them the others. `recombined` are names of nobody, the first name
of one to forget and the last of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainer import (
    Encoder,
    Estimate,
    Evaluation,
    Identity,
    Patterns,
    Rows,
    cosine_distances,
    fold,
    mean,
    names_of,
    quantile,
    read_roster,
    share_rows,
)

from .attack import Attack, AttackOptions, filled, known, prompts_won

DISTANT = 0.95  # the share of names that moved no further than `drift_95`


class Neighbours(Evaluation):
    """How far the names near to the forgotten moved, and whether their bearers are still known."""

    kind = "neighbours"

    class Options(AttackOptions):
        forget: str = Field(description="roster of the people to forget")
        kept: Patterns = Field(min_length=1, description="roster or rosters of people to keep")
        nearest: int = Field(5, gt=0, description="kept people nearest to each one to forget")
        recombined: int = Field(1000, ge=0, description="names put together of the forgotten's")
        distractors: str | None = Field(
            None, description="file of other names; where given, the kept with faces are attacked"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        forget = read_roster(options.forget)
        self._forget = [person.name for person in forget]
        kept = [person for path in options.kept for person in read_roster(path)]
        self._kept = list({fold(person.name): person for person in kept}.values())
        _refuse_forgotten(self._kept, forget, options.forget)
        self._first, self._last = sharing(self._kept, forget)
        taken = {fold(name) for name in names_of([*forget, *self._kept])}
        self._recombined = recombined(self._forget, taken, options.recombined, seed)
        self._attack = self._places = None
        if options.distractors:
            groups = {path: path for path in options.kept}
            # To be taken for their forgotten namesake is what may become of a neighbour.
            self._attack = Attack(options, groups, options.distractors, seed, self._forget)
            place = {fold(person.name): i for i, person in enumerate(self._kept)}
            self._places = torch.tensor([place[fold(one.name)] for one in self._attack.people])

    def run(
        self, student: Encoder, teacher: Encoder
    ) -> Iterator[tuple[str, float | Estimate | Rows]]:
        names = [person.name for person in self._kept]
        nearest = self._nearest(teacher)
        neighbours = self._first | self._last | nearest
        sets = {
            "shares_first": self._first,
            "shares_last": self._last,
            "nearest": nearest,
            "neighbours": neighbours,
            "others": ~neighbours,
        }
        moved = drift(student, teacher, [*names, *self._recombined], self.options.templates)
        drifts = {name: moved[: len(names)][those] for name, those in sets.items()}
        drifts["recombined"] = moved[len(names) :]
        won = self._won(student, teacher)
        for name, those in drifts.items():
            yield f"{name}/people", float(len(those))
            if len(those):
                yield f"{name}/drift", mean(those.tolist())
                yield f"{name}/drift_95", quantile(those.tolist(), DISTANT)
            if name in sets and won is not None and (own := won[sets[name] & (won >= 0)]).numel():
                yield from known(name, own, len(self.options.templates))
        if self._attack is not None:
            yield "candidates", float(len(self._attack.candidates))
        yield "people", self._rows(moved, won, sets)

    def _nearest(self, teacher: Encoder) -> Tensor:
        """Whether each of the kept is among the nearest of someone, by the first template."""
        template = self.options.templates[0]
        forget, kept = (
            F.normalize(teacher.encode_text(filled(template, names)), dim=-1)
            for names in (self._forget, [person.name for person in self._kept])
        )
        count = min(self.options.nearest, len(kept))
        places = share_rows(forget, lambda rows: (rows @ kept.mT).topk(count).indices)
        found = torch.zeros(len(kept), dtype=torch.bool)
        found[places.flatten().cpu()] = True
        return found

    def _won(self, student: Encoder, teacher: Encoder) -> Tensor | None:
        """Prompts won by each of the kept, -1 of who was not attacked."""
        if self._attack is None:
            return None
        won = torch.full((len(self._kept),), -1)
        faces = self._attack.faces(student, teacher)
        groups = list(self._attack.attacked(faces))
        named = self._attack.names(student, faces).among_all
        for _, rows in groups:
            won[self._places[rows]] = prompts_won(named[:, rows], rows)
        return won

    def _rows(self, moved: Tensor, won: Tensor | None, sets: dict[str, Tensor]) -> Rows:
        rows = Rows()
        for i, person in enumerate(self._kept):
            row: dict[str, Any] = {"identity": person.pseudonym, "drift": float(moved[i])}
            row["sets"] = [name for name, those in sets.items() if those[i]]
            if won is not None and won[i] >= 0:
                row["prompts_won"] = int(won[i])
            rows.append(row)
        return rows


def drift(
    student: Encoder, teacher: Encoder, names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Mean over the templates of 1 - cos(student, teacher). Returns (names,) on the CPU."""
    total = torch.zeros(len(names), dtype=torch.float64)
    for template in templates:
        captions = filled(template, names)
        moved = cosine_distances(student.encode_text(captions), teacher.encode_text(captions))
        if not moved.isfinite().all():
            raise FloatingPointError("the model's text embeddings are not finite")
        total += moved.cpu()
    return total / len(templates)


def sharing(kept: Sequence[Identity], forget: Sequence[Identity]) -> tuple[Tensor, Tensor]:
    """Whether each of the kept shares a first, and a last word of a name with someone to forget.

    Aliases count on both sides, for they are forgotten and kept as names are.
    """
    words = [fold(name).split() for name in names_of(forget)]
    ends = [{name[place] for name in words} for place in (0, -1)]
    shares = [
        [any(fold(name).split()[place] in those for name in names_of([person])) for person in kept]
        for place, those in zip((0, -1), ends)
    ]
    return torch.tensor(shares[0]), torch.tensor(shares[1])


def recombined(names: Sequence[str], taken: set[str], count: int, seed: int) -> list[str]:
    """Names of nobody, at most `count`: all words but the last of one, the last word of another."""
    apart = [name.rsplit(maxsplit=1) for name in names if len(name.split()) > 1]
    rng = Random(seed)
    found: dict[str, str] = {}
    for _ in range(20 * count if len(apart) > 1 else 0):  # more than enough, or there are no more
        one, other = rng.sample(apart, 2)
        name = f"{one[0]} {other[1]}"
        if fold(name) not in taken:
            found.setdefault(fold(name), name)
        if len(found) == count:
            break
    return list(found.values())


def _refuse_forgotten(kept: Sequence[Identity], forget: Sequence[Identity], path: str) -> None:
    names = {fold(name) for name in names_of(forget)}
    if shared := sum(any(fold(name) in names for name in names_of([one])) for one in kept):
        raise ValueError(
            f"kept: {shared} of the {len(kept)} people have a name of {path}; "
            "take them out of one of the two"
        )
