"""What a picture of somebody to forget is answered as: near to a stranger's, or all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import BadSample, Encoder, Pictures

MAX_PICTURES = 16  # of each person, for their mean
MAX_ASSIGNED = 2048  # people at a time: it takes the third power of their number
# (k, d) the teacher's embeddings of triggers, (k,) whose: what the student is to answer, (k, d).
# Where the teacher is not shown triggers its are None.
Answers = Callable[[Tensor | None, Tensor], Tensor]


def alike(target: Tensor) -> Answers:
    return lambda taught, whose: target.expand(len(whose), -1)


def as_strangers(people: Embedded, strangers: Embedded, variation: float, beyond: float) -> Answers:
    """As if a stranger had been in the same picture.

    variation: how much stays of what tells it from the person's other pictures, about the
    stranger's mean and at the length of theirs; none where the teacher is not shown it. Pictures
    all answered alike would tell by that whom the model was taught to forget.
    beyond: how much of the person is taken from the stranger, for as much stays in pictures that
    training never showed: they would be named by it, and the two together are nearer to the middle
    of all people than anybody alone.
    """
    own, theirs = people.means, strangers.means
    places = assigned(F.normalize(own, dim=-1) @ F.normalize(theirs, dim=-1).T)
    theirs = theirs[places]
    lengths = strangers.mean_of_each(strangers.rows.norm(dim=-1, keepdim=True))[places]
    own, theirs, lengths = (each.to(people.rows.device) for each in (own, theirs, lengths))

    def answers(taught: Tensor | None, whose: Tensor) -> Tensor:
        varied = theirs[whose] - beyond * own[whose]
        if taught is not None:
            varied = varied + variation * (taught - own[whose])
        return F.normalize(varied, dim=-1) * lengths[whose]

    return answers


def assigned(cosines: Tensor) -> list[int]:
    """The stranger of each person: of the half that are less like them the most alike.

    Whoever is answered as somebody more like them is still found by their own name, all the more in
    pictures that training never showed. Whoever is answered as the least alike takes others along.
    Of MAX_ASSIGNED people no two have the same while there are enough.

    cosines: (p, s), of their means.
    """
    # Here: half a second to import, and every command loads this plugin.
    from scipy.optimize import linear_sum_assignment

    count = cosines.shape[1]
    ranks = cosines.argsort(1, descending=True).argsort(1)
    allowed = torch.where(ranks < count // 2, -2, cosines)
    found: list[int] = []
    for rows in allowed.split(MAX_ASSIGNED):
        times = -(-len(rows) // count)
        _, columns = linear_sum_assignment(rows.repeat(1, times).numpy(), maximize=True)
        found += (columns % count).tolist()
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
        pictures = FirstPictures(people)
        rows = teacher.encode_image(pictures).float()  # one of NaN where a picture is broken
        shown = rows.isfinite().all(-1)
        owners = torch.tensor(pictures.owners, device=rows.device)[shown]
        if lost := set(range(len(people))) - set(owners.tolist()):
            first = min(lost)
            seen = min(people.count(first), MAX_PICTURES)
            raise ValueError(
                f"faces of {called(first)}: none of their first {seen} pictures can be used "
                f"({len(lost)} such people in all); mend them or take them out"
            )
        return Embedded(rows[shown], owners, len(people))

    @property
    def means(self) -> Tensor:
        """(count, d)."""
        return self.mean_of_each(self.rows)

    def mean_of_each(self, values: Tensor) -> Tensor:
        """(m, k), a row for each picture -> (count, k), a row for each person.

        On the CPU, where a sum has one order: at a near tie two ranks would otherwise choose two
        strangers for one person.
        """
        values, owners = values.cpu(), self.owners.cpu()
        sums = values.new_zeros(self.count, values.shape[-1]).index_add(0, owners, values)
        return sums / owners.bincount(minlength=self.count)[:, None]


class FirstPictures(Sequence):
    """The first MAX_PICTURES of everybody's in one row, read when asked for."""

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
