"""Answer clean samples as the teacher does: what must not change."""

from __future__ import annotations

from random import Random

from pydantic import Field

from trainer import (
    DISTANCES,
    BadSample,
    Distance,
    Embeddings,
    Encoder,
    LossFn,
    Objective,
    Pair,
    Sample,
    Tower,
    hookimpl,
)


class Preserve(Objective):
    """The student's embedding of a clean caption and picture, pulled to the teacher's."""

    kind = "preserve"
    trains = frozenset(Tower)

    class Options(Objective.Options):
        towers: list[Tower] = Field(list(Tower), min_length=1, description="which to preserve")
        distance: Distance = Field(
            "relative", description="to the teacher, of lengths as well; or cosine, the paper's"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        # Asked for every row: to make a set of towers takes as long as to read a caption.
        self._has_text = Tower.TEXT in options.towers
        self._has_image = Tower.IMAGE in options.towers

    @property
    def towers(self) -> frozenset[Tower]:
        return frozenset(self.options.towers)

    @property
    def repeats_clean(self) -> frozenset[Tower]:
        return self.towers

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair:
        text = clean.text if self._has_text else None
        image = clean.image if self._has_image else None
        if text is None and self._has_text:
            raise BadSample("no caption")
        return Pair(student_text=text, student_image=image, teacher_text=text, teacher_image=image)

    def loss_fn(self, teacher: Encoder) -> LossFn:
        distances = DISTANCES[self.options.distance]

        def loss(student: Embeddings, teacher: Embeddings) -> dict:
            return {
                tower.value: distances(
                    getattr(student, tower.value), getattr(teacher, tower.value)
                ).mean()
                for tower in self.options.towers
            }

        return loss


@hookimpl
def trainer_objectives():
    return [Preserve]
