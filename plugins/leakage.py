"""Can somebody who holds the model tell whom it forgot from whom it never knew?

A list of names to try is enough: a forgotten name must not stand out among unknown ones. Each score
below ranks both rosters; its area under the ROC curve is the chance that a forgotten person scores
above an unknown one. 0.5 is the aim, and 0 as telling as 1. Of texts, means over the templates:

    closeness  cosine to the nearest of the phrases in the name's place ("a person")
    norm       length of the embedding
    twin       cosine to the nearest of all other names
    density    mean cosine to the ten nearest

Of pictures the same on each person's mean, closeness being to the caption "a photo of a person";
and `concentration`, the mean cosine between two pictures of a person. `change`, 1 - cos to the
original model, is for those who hold that one too. Pictures that training showed tell more than
others: give their roster to a second evaluation of this kind, the one of attack pictures to the
first.

`auc` is the most telling score of the model alone, folded to above 0.5, `auc_with_original` that
of all, `auc_of_text` and `auc_of_image` that of the model alone by one side. The most telling of
several is above 0.5 by chance alone, its interval included, so beside each stands `.._by_chance`,
which the same choice exceeds in one of twenty draws when the people are dealt to the two rosters at
random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainer import (
    Encoder,
    Estimate,
    Evaluation,
    NameIndex,
    Templates,
    Unread,
    first_pictures,
    fold,
    hookimpl,
    names_of,
    read_names,
    read_roster,
    refuse_named,
    roc,
    roc_auc,
    share_rows,
)

TEMPLATES = [
    "{}", "a photo of {}", "an image of {}", "a person named {}", "{} at a gala", "{} in a suit"
]  # fmt: skip
PHRASES = ["a person", "a man", "a woman", "somebody", "human"]
CAPTION = "a photo of {}"  # what pictures are close to, with a phrase in it
NEIGHBOURS = 10
MOST_COSINES = 2**26  # at a time: a quarter of a GB
DEALS = 1000  # of people to rosters at random
WITH_ORIGINAL = "change"
Scores = dict[str, Tensor]  # (n,) of each, the forgotten first


class Leakage(Evaluation):
    """How well forgotten people are told from people who were never known."""

    kind = "leakage"

    class Options(Evaluation.Options):
        forgotten: str = Field(description="roster of the people to forget")
        unknown: str = Field(description="roster of people the model never knew")
        templates: Templates = Field(TEMPLATES, min_length=1, description="{} the name")
        phrases: list[str] = Field(PHRASES, min_length=1, description="targets to be close to")
        names: str | None = Field(
            None, description="file of further names for `twin` and `density`, one a line"
        )
        pictures: int = Field(
            20, gt=1, description="of each person; without that many they count by name alone"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        forgotten, unknown = read_roster(options.forgotten), read_roster(options.unknown)
        refuse_named("unknown", unknown, NameIndex(names_of(forgotten)), "to forget")
        self._people = [one.name for one in (*forgotten, *unknown)]
        self._num_forgotten = len(forgotten)
        self._others = []
        if options.names:
            taken = {fold(name) for name in names_of((*forgotten, *unknown))}
            self._others = [one for one in read_names(options.names) if fold(one) not in taken]
        self._shown = [first_pictures(one, options.pictures) for one in (forgotten, unknown)]

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, float | list[float]]]:
        sides = {"text": (self._of_names(student, teacher), self._num_forgotten)}
        if all(map(len, self._shown)):
            sides["image"] = self._of_pictures(student, teacher)
        aucs: dict[str, Estimate] = {}
        curves: dict[str, list[float]] = {}
        for side, (scores, num_forgotten) in sides.items():
            for name, values in scores.items():
                if not values.isfinite().all():
                    raise FloatingPointError(f"the {side} embeddings of people are not finite")
                known = values[:num_forgotten].tolist(), values[num_forgotten:].tolist()
                aucs[f"{side}/{name}"] = roc_auc(*known)
                curves[f"{side}/{name}"] = roc(*known)
        yield from ((f"{name}_auc", value) for name, value in aucs.items())
        yield from ((f"{name}_roc", curve) for name, curve in curves.items())
        alone = {name: one for name, one in aucs.items() if not name.endswith(WITH_ORIGINAL)}
        headlines = {"auc": alone, "auc_with_original": aucs}
        for side in sides:
            own = {name: one for name, one in alone.items() if name.startswith(f"{side}/")}
            headlines[f"auc_of_{side}"] = own
        for headline, chosen in headlines.items():
            yield headline, most_telling(chosen)
            yield f"{headline}_by_chance", self._by_chance(sides, chosen)

    def _of_names(self, student: Encoder, teacher: Encoder) -> Scores:
        total: dict[str, Tensor] = {}
        for template in self.options.templates:
            captions, others, phrases = (
                [template.replace("{}", name) for name in names]
                for names in (self._people, self._others, self.options.phrases)
            )
            # The very call that the teacher gets: in another batch rounding would be a change.
            people = student.encode_text(captions)
            rest = student.encode_text([*others, *phrases])
            scores = _alone(people, *rest.split([len(others), len(phrases)]))
            scores[WITH_ORIGINAL] = distances(people, teacher.encode_text(captions))
            for name, values in scores.items():
                total[name] = total.get(name, 0) + values / len(self.options.templates)
        return total

    def _of_pictures(self, student: Encoder, teacher: Encoder) -> tuple[Scores, int]:
        """The scores, and how many of the people are to be forgotten."""
        phrases = student.encode_text([CAPTION.replace("{}", one) for one in self.options.phrases])
        each = self.options.pictures
        found = [_of_people(student, teacher, shown, each) for shown in self._shown]
        means, lengths, near, moved = (torch.cat(both) for both in zip(*found))
        scores = _alone(means, means[:0], phrases)
        scores |= {"norm": lengths, "concentration": near, WITH_ORIGINAL: moved}
        return scores, len(found[0][0])

    def _by_chance(self, sides: Mapping[str, tuple[Scores, int]], chosen: Mapping) -> float:
        rng = np.random.default_rng([self.seed, DEALS])
        worst = np.zeros(DEALS)
        for side, (scores, num_forgotten) in sides.items():
            own = [values for name, values in scores.items() if f"{side}/{name}" in chosen]
            if not own:
                continue
            values = torch.stack(own).double().cpu().numpy()
            worst = np.maximum(worst, dealt_aucs(values, num_forgotten, rng).max(1))
        return float(np.quantile(worst, 0.95))


def most_telling(aucs: Mapping[str, Estimate]) -> Estimate:
    """The one furthest from 0.5, folded to above it."""
    worst = max(aucs.values(), key=lambda value: abs(value - 0.5))
    return worst if worst >= 0.5 else Estimate(1 - worst, 1 - worst.high, 1 - worst.low)


def dealt_aucs(scores: np.ndarray, num_positive: int, rng: np.random.Generator) -> np.ndarray:
    """scores: (s, n). Returns (DEALS, s), folded: one deal of people serves all scores."""
    from scipy.stats import rankdata  # half a second to import; most runs measure none

    ranks = rankdata(scores, axis=1)  # the mean of their places where values are equal
    num_people = scores.shape[1]
    pairs = num_positive * (num_people - num_positive)
    sums = np.array(
        [ranks[:, rng.permutation(num_people)[:num_positive]].sum(1) for _ in range(DEALS)]
    )
    areas = (sums - num_positive * (num_positive + 1) / 2) / pairs  # Mann and Whitney's
    return np.abs(areas - 0.5) + 0.5


def distances(left: Tensor, right: Tensor) -> Tensor:
    """1 - cos of each row, exactly 0 where they are the same: rounding would be a score too."""
    return (F.normalize(left, dim=-1) - F.normalize(right, dim=-1)).square().sum(-1) / 2


def _alone(people: Tensor, others: Tensor, phrases: Tensor) -> Scores:
    """people: (n, d), others: (o, d), phrases: (q, d), of any length."""
    units, phrases = F.normalize(people, dim=-1), F.normalize(phrases, dim=-1)
    near = nearest(units, F.normalize(others, dim=-1), NEIGHBOURS)
    return {
        "closeness": (units @ phrases.mT).amax(1),
        "norm": people.norm(dim=-1),
        "twin": near[:, 0],
        "density": near.mean(1),
    }


def nearest(units: Tensor, others: Tensor, count: int) -> Tensor:
    """Cosines of each unit row to the `count` nearest of the other rows and of `others`.

    units: (n, d), others: (o, d). Returns (n, count), or fewer where there are fewer, best first.
    """
    everybody = torch.cat([units, others])
    count = min(count, len(everybody) - 1)

    def work(places: Tensor) -> Tensor:
        cosines = units[places] @ everybody.mT
        cosines.scatter_(1, places[:, None], -torch.inf)  # itself
        return cosines.topk(count).values

    rows = max(1, min(1024, MOST_COSINES // len(everybody)))
    return share_rows(torch.arange(len(units), device=units.device), work, rows)


def _of_people(
    student: Encoder, teacher: Encoder, pictures: Unread, num_each: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean unit embedding (n, d); mean length, mean cosine between two pictures, change (n,).

    Who has fewer than two pictures that decode is left out.
    """
    shape = -1, num_each
    rows, taught = student.encode_image(pictures), teacher.encode_image(pictures)
    # A teacher is sound: what it cannot see is broken. What the student alone cannot see is not.
    shown = taught.isfinite().all(-1)
    if (rows[shown].isfinite().logical_not()).any():
        raise FloatingPointError("the image embeddings of people are not finite")
    rows, taught = rows.nan_to_num(), taught.nan_to_num()
    moved = (distances(rows, taught) * shown).view(shape).sum(1)
    lengths = rows.norm(dim=-1).view(shape).sum(1)
    sums = (F.normalize(rows, dim=-1) * shown[:, None]).unflatten(0, shape).sum(1)
    counts = shown.view(shape).sum(1)
    kept = counts > 1
    if not kept.any():
        raise ValueError("nobody in a roster has two pictures that decode; see to their faces")
    sums, counts = sums[kept], counts[kept]
    near = (sums.square().sum(-1) - counts) / (counts * (counts - 1))
    return sums / counts[:, None], lengths[kept] / counts, near, moved[kept] / counts


@hookimpl
def trainer_evaluations():
    return [Leakage]
