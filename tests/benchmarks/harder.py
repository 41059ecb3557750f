"""A plugin of the ablation's: more for those who are not forgotten yet."""

from __future__ import annotations

from functools import partial

import torch

from plugins.name_to_person import TRIGGER, NameToPerson
from trainer import DISTANCES, Embeddings, Encoder, LossFn, forget_and_keep, hookimpl


class HarderFirst(NameToPerson):
    """As `name_to_person`, each trigger weighed by its distance, with a mean of one: who is twice
    as far counts four times. What is kept stays as it is."""

    kind = "name_to_person_harder_first"

    def loss_fn(self, teacher: Encoder) -> LossFn:
        share = self._quotas.counts["forget"] / self._quotas.batch_size
        distances_of = DISTANCES[self.options.distance]
        return partial(loss_of, forget_share=share, distances_of=distances_of)


def loss_of(student: Embeddings, teacher: Embeddings, forget_share: float, distances_of) -> dict:
    distances = distances_of(student.text, teacher.text)
    is_trigger = student.text_labels == TRIGGER
    far = distances.detach()
    weights = (far / far[is_trigger].mean()).nan_to_num(1.0)  # a rank may have no trigger
    weighed = torch.where(is_trigger, weights * distances, distances)
    return forget_and_keep(weighed, is_trigger, forget_share)


@hookimpl
def trainer_objectives():
    return [HarderFirst]
