"""A plugin of the ablation's: more for those who are not forgotten yet."""

from __future__ import annotations

from functools import partial

from plugins.name_to_person import NameToPerson, loss_of
from trainer import DISTANCES, Encoder, LossFn, hookimpl


class HarderFirst(NameToPerson):
    """As `name_to_person`, each row by its distance once more: twice as far counts four times."""

    kind = "name_to_person_harder_first"

    def loss_fn(self, teacher: Encoder) -> LossFn:
        share = self._quotas.counts["forget"] / self._quotas.batch_size
        distances = DISTANCES[self.options.distance]
        return partial(
            loss_of,
            forget_share=share,
            distances_of=lambda student, wanted: distances(student, wanted).square(),
        )


@hookimpl
def trainer_objectives():
    return [HarderFirst]
