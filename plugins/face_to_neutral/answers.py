"""What a picture of somebody to forget is answered as: near to a stranger's, or all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainer import BadSample, Encoder, Pictures

MAX_PICTURES = 16  # of each person, for their mean
MAX_ASSIGNED = 2048  # people at a time: it takes the third power of their number
# (k, d) the teacher's embeddings of triggers, (k,) whose: what the student is to answer, (k, d).
Answers = Callable[[Tensor, Tensor], Tensor]


def alike(target: Tensor) -> Answers:
    return lambda taught, whose: target.expand_as(taught)


def as_strangers(people: Embedded, strangers: Embedded) -> Answers:
    """As if the stranger whom a person is most like had been in the same picture.

    What tells it from the person's other pictures stays, about the stranger's mean and at the
    length of theirs: pictures all answered alike would tell by that whom the model was taught to
    forget. And the nearer the answer, the less is moved with it of what is to stay.
    """
    own, theirs = people.means, strangers.means
    own_units = F.normalize(own, dim=-1)
    spread = (F.normalize(people.rows, dim=-1) * own_units[people.owners]).sum(-1, keepdim=True)
    places = assigned(own_units @ F.normalize(theirs, dim=-1).T, people.mean_of_each(spread))
    moves = theirs[places] - own
    lengths = strangers.mean_of_each(strangers.rows.norm(dim=-1, keepdim=True))[places]
    return lambda taught, whose: F.normalize(taught + moves[whose], dim=-1) * lengths[whose]


def assigned(cosines: Tensor, own: Tensor) -> list[int]:
    """The stranger of each person: the most alike in all, none twice while there are enough.

    cosines: (p, s), of their means. own: (p, 1), of a person's pictures with their mean. A stranger
    as near as these may be the very person, among whose pictures nobody looked, and is left out.
    """
    cosines = torch.where(cosines < own, cosines, -1).cpu()
    found: list[int] = []
    for rows in cosines.split(MAX_ASSIGNED):
        times = -(-len(rows) // rows.shape[1])
        _, columns = linear_sum_assignment(rows.repeat(1, times).numpy(), maximize=True)
        found += (columns % rows.shape[1]).tolist()
    return found


@dataclass(frozen=True)
class Embedded:
    """rows: (m, d), of the pictures that can be used. owners: (m,), whose. count: of people."""

    rows: Tensor
    owners: Tensor
    count: int

    @staticmethod
    def of(people: Pictures, teacher: Encoder, called: Callable[[int], str]) -> Embedded:
        """called: each person, in errors. Raises ValueError where one has no picture to be used."""
        pictures = AllPictures(people)
        rows = teacher.encode_image(pictures).float()  # one of NaN where a picture is broken
        shown = rows.isfinite().all(-1)
        owners = torch.tensor(pictures.owners, device=rows.device)[shown]
        if lost := set(range(len(people))) - set(owners.tolist()):
            first = min(lost)
            raise ValueError(
                f"faces of {called(first)}: none of their {people.count(first)} pictures can be "
                f"used ({len(lost)} such people in all); mend them or take them out"
            )
        return Embedded(rows[shown], owners, len(people))

    @property
    def means(self) -> Tensor:
        """(count, d)."""
        return self.mean_of_each(self.rows)

    def mean_of_each(self, values: Tensor) -> Tensor:
        """(m, k), a row for each picture -> (count, k), a row for each person."""
        sums = values.new_zeros(self.count, values.shape[-1]).index_add(0, self.owners, values)
        return sums / self.owners.bincount(minlength=self.count)[:, None]


class AllPictures(Sequence):
    """Some of everybody's pictures in one row, read when asked for."""

    def __init__(self, people: Pictures):
        self._people = people
        self._places = [
            (i, j) for i in range(len(people)) for j in range(min(people.count(i), MAX_PICTURES))
        ]
        self.owners = [i for i, _ in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> bytes:
        try:
            return self._people.read(*self._places[place])
        except BadSample:
            return b""  # one more that does not decode: raising on one rank would hang the others
