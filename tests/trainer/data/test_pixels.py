from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from plugins.preserve import Preserve
from trainer.configuration.sections import DataConfig
from trainer.data.batches import STUDENT_IMAGE, Batch, Batches
from trainer.data.pixels import Filled, Slots

STEPS = 20  # more than a worker has slots


def stream(clip, shards: str, workers: int) -> Batches:
    keep = Preserve(Preserve.Options(batch_size=8, towers=["image"]), seed=0)
    data = DataConfig(shards=[shards], workers=workers, lanes=8, shuffle=10)
    return Batches({"keep": keep}, data, clip, 0, 0, 1)


def pictures(batch: Batch) -> Tensor:
    """(n, 3, H, W), in the order of the rows."""
    places = batch.rows["keep"][:, STUDENT_IMAGE]
    return torch.cat([batch.pixels[place] for place in places.split(1)])


@pytest.fixture
def alone(tiny_clip, clean_shards) -> list[Tensor]:
    return [pictures(batch) for batch in islice(stream(tiny_clip, clean_shards, 0), STEPS)]


def test_slots_that_are_used_again_hold_the_new_pictures(tiny_clip, clean_shards, alone):
    for one, batch in zip(alone, stream(tiny_clip, clean_shards, 2)):
        assert torch.equal(one, pictures(batch))


def test_batches_that_are_kept_keep_their_pictures(tiny_clip, clean_shards, alone):
    kept = list(islice(stream(tiny_clip, clean_shards, 2), STEPS))
    for one, batch in zip(alone, kept, strict=True):
        assert torch.equal(one, pictures(batch))


def test_a_slot_is_free_when_no_view_of_it_is_left():
    slots = Slots(num_workers=2, num_each=1, size=(4, 4))
    assert slots.take(1) == 1
    assert slots.take(1) is None
    slots.room(1).fill_(7)
    lent = slots.lend(Filled(1, 3))
    assert lent.shape == (3, 3, 4, 4) and lent.unique().tolist() == [7]
    view = lent[1:]
    del lent
    assert slots.take(1) is None
    del view
    assert slots.take(1) == 1


def test_each_worker_has_its_own_slots():
    slots = Slots(num_workers=2, num_each=2, size=(4, 4))
    assert [slots.take(worker) for worker in (1, 0, 1, 0, 0, 1)] == [2, 0, 3, 1, None, None]
