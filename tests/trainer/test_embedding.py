"""What a model is shown of a batch, and whose each embedding is."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.trainer.architectures import pixels
from trainer import Tower
from trainer.batches import ABSENT, Batch
from trainer.blocks import lean
from trainer.clip import Towers
from trainer.embedding import STUDENT, TEACHER, Showing, embed
from trainer.packing import Packed, pack
from trainer.pixels import Pixels
from trainer.skips import Skips

CPU = torch.device("cpu")
TEXTS = ["a red hat", "a person at a gala in the old town", "a person", "a hat"]
# Turn, label, and the student's text and image, the teacher's text and image.
ROWS = {
    "names": [[0, 1, 1, ABSENT, 2, ABSENT], [1, 0, 3, ABSENT, 3, ABSENT]],
    "faces": [[0, 5, ABSENT, 2, ABSENT, ABSENT], [1, 6, ABSENT, 0, ABSENT, 0]],
    "both": [[0, 7, 0, 1, 0, 1]],
}


@pytest.fixture
def batch(plain) -> Batch:
    rows = {name: torch.tensor(own) for name, own in ROWS.items()}
    tokens = plain.clip.tokenize(TEXTS)
    return Batch(tokens, Pixels((pixels(3),)), rows, Skips(), {}, frozenset())


@pytest.mark.parametrize("is_packed", [False, True])
def test_each_objective_gets_its_own_rows_in_order(plain, batch, is_packed):
    if is_packed:
        lean(plain.clip.model)
    towers = Towers(plain.clip, frozenset(Tower))
    show = Showing(towers, CPU)
    if is_packed:  # as where there is a GPU
        show._pack = partial(pack, tower=towers.text, pad_id=0)
    shown = show(batch, batch.pixels, STUDENT)
    assert isinstance(shown.captions, Packed) == is_packed
    found = embed(towers, shown)
    text, image, scale = towers(batch.tokens, pixels(3))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(found["names"].text, text[[1, 3]])
    assert found["names"].image is None and found["names"].image_labels is None
    assert found["names"].text_labels.tolist() == [1, 0]
    close(found["faces"].image, image[[2, 0]])
    assert found["faces"].text is None and found["faces"].image_labels.tolist() == [5, 6]
    close(found["both"].text, text[[0]])
    close(found["both"].image, image[[1]])
    assert found["both"].logit_scale == scale


def test_a_model_sees_what_is_its_own_alone(plain, batch):
    show = Showing(Towers(plain.clip, frozenset(Tower)), CPU)
    to_teacher = show(batch, batch.pixels, TEACHER)
    assert len(to_teacher.captions) == 3 and len(to_teacher.pictures) == 2
    seen = embed(Towers(plain.clip, frozenset(Tower)), to_teacher)
    assert len(seen["faces"].image) == 1  # the other is not shown to the teacher
    assert seen["faces"].image_labels.tolist() == [6]


def test_where_there_is_nothing_to_see_no_model_runs(plain, batch):
    rows = {"faces": torch.tensor([[0, 1, ABSENT, 0, ABSENT, ABSENT]])}
    only = Batch(batch.tokens, batch.pixels, rows, Skips(), {}, frozenset())
    shown = Showing(Towers(plain.clip, frozenset(Tower)), CPU)(only, only.pixels, TEACHER)
    found = embed(None, shown)["faces"]
    assert found.text is None and found.image is None and found.logit_scale == 1
