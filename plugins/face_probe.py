"""Do a person's pictures still lie together, so that a few of them find the rest?

A linear probe of frozen image embeddings, as CLIP's authors use it (arXiv 2103.00020, section 3.2):
a classifier learns k pictures of each person and names others. The people of all groups are told
apart together. That a face is no longer found by its name does not mean that it cannot be learnt
again: a forgotten person who is answered as one fixed stranger is as easy to tell as before.

The last pictures of each person are the ones to name, the same for every k. The interval takes a
person's pictures as one case. `chance` is what guessing gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch.nn.functional as F
from pydantic import Field, field_validator

from trainer import (
    Encoder,
    Evaluation,
    Identity,
    NameIndex,
    first_pictures,
    hookimpl,
    names_of,
    rate_by_person,
    read_roster,
    refuse_named,
)


class FaceProbe(Evaluation):
    """Accuracy of a few-shot classifier of people on the student's embeddings and the teacher's."""

    kind = "face_probe"

    class Options(Evaluation.Options):
        groups: dict[str, str] = Field(
            min_length=1, description="name of each group (forget, unseen) and its roster"
        )
        shots: list[int] = Field([1, 5, 10], min_length=1, description="pictures learnt of each")
        pictures: int = Field(20, gt=1, description="of each person; who has fewer is dropped")
        classifier: Literal["logistic", "nearest_mean"] = Field(
            "logistic", description="nearest_mean is quick for thousands of people"
        )

        @field_validator("shots")
        @classmethod
        def _each_is_a_number(cls, shots: list[int]) -> list[int]:
            if min(shots) < 1 or len(set(shots)) < len(shots):
                raise ValueError(f"shots are {shots}; give numbers above 0, each once")
            return shots

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        if options.pictures <= max(options.shots):
            raise ValueError(
                f"pictures is {options.pictures} and {max(options.shots)} of them are learnt; "
                "raise it, so that some are left to name, or lower shots"
            )
        rosters = {group: read_roster(path) for group, path in options.groups.items()}
        _refuse_shared(rosters)
        self._pictures = {
            group: first_pictures(people, options.pictures) for group, people in rosters.items()
        }
        self._sizes = {group: len(people) for group, people in rosters.items()}
        for group, pictures in self._pictures.items():
            if not len(pictures):
                raise ValueError(
                    f"group {group}: none of the {self._sizes[group]} people of "
                    f"{options.groups[group]} has {options.pictures} pictures; lower `pictures`"
                )

        if sum(map(len, self._pictures.values())) == options.pictures:
            raise ValueError("there is one person in all groups; a probe tells two or more apart")

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, float]]:
        taught = self._embedded(teacher)
        rows = taught if student is teacher else self._embedded(student)
        # The teacher is sound: what it cannot see is broken, for both.
        shown = {group: np.isfinite(one).all(-1) for group, one in taught.items()}
        whole = {group: one.all(1) for group, one in shown.items()}  # (people,)
        if not all(one.any() for one in whole.values()):
            raise ValueError("nobody in a group has pictures that all decode; see to their faces")
        num_people = sum(int(one.sum()) for one in whole.values())
        for model, found in (("student", rows), ("teacher", taught)):
            kept = {group: found[group][whole[group]] for group in found}
            for shots in self.options.shots:
                for group, hits in self._hits(kept, shots).items():
                    totals = [self.options.pictures - max(self.options.shots)] * len(hits)
                    yield f"{model}/{group}/accuracy_{shots}", rate_by_person(hits, totals)
        for group, one in whole.items():
            yield f"{group}/people", float(one.sum())
            yield f"{group}/dropped", float(self._sizes[group] - one.sum())
        yield "chance", 1 / num_people

    def _embedded(self, model: Encoder) -> dict[str, np.ndarray]:
        """Unit (people, pictures, d) of each group."""
        return {
            group: F.normalize(model.encode_image(pictures), dim=-1)
            .unflatten(0, (-1, self.options.pictures))
            .double()
            .cpu()
            .numpy()
            for group, pictures in self._pictures.items()
        }

    def _hits(self, rows: Mapping[str, np.ndarray], shots: int) -> dict[str, list[int]]:
        """How many of each person's pictures are named right."""
        everybody = np.concatenate(list(rows.values()))
        if not np.isfinite(everybody).all():
            raise FloatingPointError("the student's image embeddings of people are not finite")
        learnt, asked = everybody[:, :shots], everybody[:, max(self.options.shots) :]
        named = CLASSIFIERS[self.options.classifier](learnt, asked.reshape(-1, asked.shape[-1]))
        truth = np.arange(len(everybody))[:, None]
        hits = (named.reshape(asked.shape[:2]) == truth).sum(1)
        parts = np.split(hits, np.cumsum([len(one) for one in rows.values()])[:-1])
        return {group: part.tolist() for group, part in zip(rows, parts)}


def by_logistic_regression(learnt: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """learnt: (people, shots, d); asked: (n, d). Returns (n,), the person of each."""
    from sklearn.linear_model import LogisticRegression  # seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    people, shots, width = learnt.shape
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():  # one picture a person is what was asked for
        warnings.filterwarnings("ignore", "The number of unique classes")
        probe.fit(learnt.reshape(-1, width), np.repeat(np.arange(people), shots))
    return probe.predict(asked)


def by_nearest_mean(learnt: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """By cosine. Shapes as above."""
    means = learnt.mean(1)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    return (asked @ means.T).argmax(1)


CLASSIFIERS = {"logistic": by_logistic_regression, "nearest_mean": by_nearest_mean}


def _refuse_shared(rosters: Mapping[str, Sequence[Identity]]) -> None:
    """One person in two groups would be two classes."""
    groups = list(rosters)
    for i, group in enumerate(groups):
        for other in groups[:i]:
            index = NameIndex(names_of(rosters[other]))
            refuse_named(f"groups.{group}", rosters[group], index, f"of group {other}")


@hookimpl
def trainer_evaluations():
    return [FaceProbe]
