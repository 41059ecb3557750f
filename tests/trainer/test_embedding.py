"""What a model is shown of a batch, and whose each embedding is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.trainer.architectures import pixels
from trainer import Tower
from trainer.data.batches import ABSENT, Batch
from trainer.data.pixels import Pixels
from trainer.data.skips import Skips
from trainer.embedding import STUDENT, TEACHER, Showing, embed
from trainer.models.blocks import lean
from trainer.models.clip import Towers
from trainer.models.packing import Packed, pack

CPU = torch.device("cpu")
TEXTS = ["a red hat", "a person at a gala in the old town", "a person", "a hat"]
# Turn, label, the student's text and image, the teacher's text and image; see `all_columns`.
ROWS = {
    "names": [[0, 1, 1, ABSENT, 2, ABSENT], [1, 0, 3, ABSENT, 3, ABSENT]],
    "faces": [[0, 5, ABSENT, 2, ABSENT, ABSENT], [1, 6, ABSENT, 0, ABSENT, 0]],
    "both": [[0, 7, 0, 1, 0, 1]],
}


def all_columns(rows: list[list[int]]) -> torch.Tensor:
    """None of what the teacher sees is known."""
    return torch.tensor([[*row, ABSENT, ABSENT] for row in rows])


@pytest.fixture
def batch(plain) -> Batch:
    rows = {name: all_columns(own) for name, own in ROWS.items()}
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
    rows = {"faces": all_columns([[0, 1, ABSENT, 0, ABSENT, ABSENT]])}
    only = Batch(batch.tokens, batch.pixels, rows, Skips(), {}, frozenset())
    shown = Showing(Towers(plain.clip, frozenset(Tower)), CPU)(only, only.pixels, TEACHER)
    found = embed(None, shown)["faces"]
    assert found.text is None and found.image is None and found.logit_scale == 1


def test_what_is_known_stands_in_its_row_and_is_not_shown_to_the_teacher(plain, batch):
    """The student still sees both; of the teacher's two other pictures one is shown."""
    towers = Towers(plain.clip, frozenset(Tower))
    width = towers(None, pixels(1))[1].shape[1]
    kept = torch.randn(2, width).half()
    rows = torch.tensor([[0, 7, 0, 1, ABSENT, ABSENT, 0, 1], [1, 8, 3, 2, 3, 2, ABSENT, ABSENT]])
    partly = replace(batch, rows=batch.rows | {"both": rows}, known=(kept[:1], kept))
    show = Showing(towers, CPU)
    to_teacher = show(partly, batch.pixels, TEACHER)
    assert len(to_teacher.captions) == 2 and len(to_teacher.pictures) == 2
    seen = embed(towers, to_teacher)
    text, image, _ = towers(batch.tokens, pixels(3))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(seen["both"].text, torch.stack([kept[0].float(), text[3]]))
    close(seen["both"].image, torch.stack([kept[1].float(), image[2]]))
    assert seen["both"].image_labels.tolist() == [7, 8]
    close(seen["faces"].image, image[[0]])
    learnt = embed(towers, show(partly, batch.pixels, STUDENT))
    close(learnt["both"].image, image[[1, 2]])
