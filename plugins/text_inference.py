"""Does the model know a person? Asked by name alone, without a picture of anyone.

After TUNI (arXiv 2405.14517): names that nobody can have, gibberish, show how a model embeds what
it never saw; anomaly detectors fitted on them flag a name that is embedded otherwise, by vote. TUNI
takes its features from pictures optimised towards a text, through the model's gradients. Here they
are statistics of the text embeddings, and the attack needs nothing but these:

    distance     from the mean of gibberish in the same context, mean over the contexts
    consistency  how far the name points the same way in all contexts, from that mean
    twin         cosine to the nearest gibberish
    length       of the embedding
    sensitivity  1 - cos to the name with one letter changed

Gibberish is drawn letter by letter, each as it follows the last in the names asked for, so that it
looks like them. Half of it fits the detectors (isolation forest, local outlier factor, one-class
SVM), half sets the threshold that `false_alarms` of it exceed. A person is flagged by two of three.
`auc` is of a group against `unknown`: 0.5 means that they cannot be told apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random
from string import ascii_lowercase

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainer import (
    Encoder,
    Evaluation,
    NameIndex,
    Templates,
    fold,
    hookimpl,
    names_of,
    rate,
    read_roster,
    refuse_named,
    roc_auc,
    share_rows,
)

TEMPLATES = [
    "{}", "a photo of {}", "an image of {}", "a person named {}", "the name of the person is {}",
    "{} at a gala", "a portrait of {}", "{} in a suit",
]  # fmt: skip
UNKNOWN = "unknown"  # the group of people who were never learnt
NUM_NEEDED = 2  # of the three detectors
MAX_TRIES = 100  # to draw each gibberish name
MAX_LETTERS = 12  # of a word


class TextInference(Evaluation):
    """Share of people flagged as known from their name's embedding."""

    kind = "text_inference"

    class Options(Evaluation.Options):
        groups: dict[str, str] = Field(
            min_length=1,
            description="name of each group (forget, replayed, unseen, unknown) and its roster",
        )
        templates: Templates = Field(TEMPLATES, min_length=2, description="{} the name")
        gibberish: int = Field(600, ge=40, description="names of nobody to learn from")
        misspellings: int = Field(6, gt=0, description="of each name")
        false_alarms: float = Field(0.05, gt=0, lt=0.5, description="share of gibberish flagged")

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        rosters = {group: read_roster(path) for group, path in options.groups.items()}
        if UNKNOWN in rosters:  # from whom the others are told
            index = NameIndex(names_of(rosters[UNKNOWN]))
            for group in rosters.keys() - {UNKNOWN}:
                refuse_named(f"groups.{group}", rosters[group], index, f"of group {UNKNOWN}")
        self._sizes = {group: len(people) for group, people in rosters.items()}
        everybody = [one for people in rosters.values() for one in people]
        self._people = [one.name for one in everybody]
        rng = Random(f"text_inference {seed}")
        taken = {fold(name) for name in names_of(everybody)}
        self._gibberish = draw_gibberish(self._people, taken, options.gibberish, rng)
        self._misspelt = [
            [misspelt(name, rng) for name in (*self._gibberish, *self._people)]
            for _ in range(options.misspellings)
        ]

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, float]]:
        features = self._features(student)
        if not np.isfinite(features).all():
            raise FloatingPointError("the model's text embeddings are not finite")
        flagged, scores = judge(
            features[: len(self._gibberish)],
            features[len(self._gibberish) :],
            self.options.false_alarms,
            self.seed,
        )
        places = np.cumsum([0, *self._sizes.values()])
        rows = {name: slice(*places[i : i + 2]) for i, name in enumerate(self._sizes)}
        for group, own in rows.items():
            yield f"{group}/flagged", rate(int(flagged[own].sum()), self._sizes[group])
            if group != UNKNOWN and UNKNOWN in rows:
                yield f"{group}/auc", roc_auc(scores[own], scores[rows[UNKNOWN]])

    def _features(self, model: Encoder) -> np.ndarray:
        """(n, 5), the gibberish first."""
        names = [*self._gibberish, *self._people]
        num_gibberish = len(self._gibberish)
        own = (torch.arange(len(names)) < num_gibberish).float()[:, None]
        directions, totals = 0, 0
        for template in self.options.templates:
            rows = model.encode_text([template.replace("{}", name) for name in names])
            units = F.normalize(rows, dim=-1)
            own = own.to(units.device)
            # Without the name itself, which would make gibberish lie nearer than anyone.
            away = units - (units[:num_gibberish].sum(0) - own * units) / (num_gibberish - own)
            directions = directions + F.normalize(away, dim=-1)
            twins = nearest(units, num_gibberish)
            totals = totals + torch.stack([away.norm(dim=-1), twins, rows.norm(dim=-1)], 1)
        consistency = directions.norm(dim=-1, keepdim=True)
        bare = F.normalize(model.encode_text(names), dim=-1)
        sensitivity = torch.stack(
            [
                1 - (bare * F.normalize(model.encode_text(one), dim=-1)).sum(-1)
                for one in self._misspelt
            ]
        ).mean(0)
        features = torch.cat([totals, consistency, sensitivity[:, None]], 1)
        return features.double().cpu().numpy()


def nearest(units: Tensor, num_others: int) -> Tensor:
    """Cosine of each unit row to the nearest of the first `num_others` but itself. Gives (n,)."""

    def work(places: Tensor) -> Tensor:
        cosines = units[places] @ units[:num_others].mT
        own = places < num_others
        cosines[own.nonzero()[:, 0], places[own]] = -torch.inf
        return cosines.amax(1)

    return share_rows(torch.arange(len(units), device=units.device), work)


def judge(
    gibberish: np.ndarray, people: np.ndarray, false_alarms: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each person is flagged, and how unlike gibberish they are. Both (people,)."""
    from sklearn.ensemble import IsolationForest  # seconds to import; most runs measure none
    from sklearn.neighbors import LocalOutlierFactor
    from sklearn.svm import OneClassSVM

    deviation = gibberish.std(0)
    scale = np.where(deviation > 0, deviation, 1)
    gibberish, people = ((one - gibberish.mean(0)) / scale for one in (gibberish, people))
    fitted, held_out = gibberish[::2], gibberish[1::2]
    votes, scores = 0, 0
    for detector in (
        IsolationForest(random_state=seed),
        LocalOutlierFactor(novelty=True),
        OneClassSVM(nu=false_alarms),
    ):
        detector.fit(fitted)
        normal, found = (-detector.score_samples(one) for one in (held_out, people))
        votes = votes + (found > np.quantile(normal, 1 - false_alarms))
        scores = scores + (found - normal.mean()) / (normal.std() or 1)
    return votes >= NUM_NEEDED, scores


def draw_gibberish(names: Sequence[str], taken: set[str], count: int, rng: Random) -> list[str]:
    """Names of as many words as those given, none of them in `taken` (folded)."""
    followers = defaultdict(list)  # letter -> all that follow it; "" ends a word and begins one
    for word in (word.lower() for name in names for word in name.split()):
        for letter, follower in zip(["", *word], [*word, ""]):
            followers[letter].append(follower)
    found: dict[str, str] = {}
    for _ in range(MAX_TRIES * count):
        num_words = len(rng.choice(names).split())
        name = " ".join(_word(followers, rng).title() for _ in range(num_words))
        if fold(name) and fold(name) not in taken:
            found.setdefault(fold(name), name)
        if len(found) == count:
            return list(found.values())
    raise ValueError(
        f"the {len(names)} names of the groups are too much alike to make {count} gibberish names "
        f"of their letters, only {len(found)}; lower `gibberish` or add people"
    )


def _word(followers: dict[str, list[str]], rng: Random) -> str:
    word, letter = "", rng.choice(followers[""])
    while letter and len(word) < MAX_LETTERS:
        word += letter
        letter = rng.choice(followers[letter])
    return word


def misspelt(name: str, rng: Random) -> str:
    """With one letter replaced by another."""
    places = [i for i, letter in enumerate(name) if letter.isalpha()] or range(len(name))
    place = rng.choice(places)
    letter = rng.choice(ascii_lowercase.replace(name[place].lower(), ""))
    return name[:place] + (letter.upper() if name[place].isupper() else letter) + name[place + 1 :]


@hookimpl
def trainer_evaluations():
    return [TextInference]
