"""What a model is shown of a batch, and whose each embedding is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from plugins.contrastive import Contrastive
from tests.conftest import TINY
from tests.ranks import on_ranks
from tests.trainer.architectures import KINDS, Original, make, pixels
from trainer import Tower
from trainer.configuration.sections import ModelConfig
from trainer.data.batches import ABSENT, Batch
from trainer.data.pixels import Pixels
from trainer.data.skips import Skips
from trainer.embedding import STUDENT, TEACHER, Showing, embed
from trainer.models.blocks import lean
from trainer.models.clip import Towers, load, replica, student_of
from trainer.models.packing import Packed, pack
from trainer.strategies.preparing import blocks_of
from trainer.testing import FakeEncoder

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
    found = embed(None, shown, torch.tensor(14.0))["faces"]
    assert found.text is None and found.image is None and found.logit_scale == 14


def test_losses_get_float32_whatever_a_model_computes_in(plain, batch):
    towers = Towers(plain.clip, frozenset(Tower))
    half = replica(towers, CPU, torch.bfloat16)
    for model, columns in ((half, TEACHER), (half, STUDENT)):
        found = embed(model, Showing(towers, CPU)(batch, batch.pixels, columns))
        for own in found.values():
            parts = (own.text, own.image, own.logit_scale)
            assert {one.dtype for one in parts if one is not None} == {torch.float32}


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


@pytest.fixture(scope="module", params=KINDS)
def original(request, tmp_path_factory) -> Original:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("unseen", Tower)
def test_a_students_tower_without_rows_gets_a_gradient_of_zeros(original, unseen):
    """Wherever it gets one of rows; and no NaN."""
    clip = original.clip
    towers = student_of(clip, frozenset(Tower), ModelConfig(name=original.name), temperature=False)
    rows = {
        Tower.TEXT: [[0, 1, ABSENT, 0, ABSENT, ABSENT]],
        Tower.IMAGE: [[0, 1, 0, ABSENT, ABSENT, ABSENT]],
    }[unseen]
    own = {"own": all_columns(rows)}
    batch = Batch(clip.tokenize(TEXTS), Pixels((pixels(1),)), own, Skips(), {}, frozenset())
    shown = Showing(towers, CPU)(batch, batch.pixels, STUDENT)
    learnt = embed(towers, shown)["own"]
    seen, other = learnt.text, learnt.image
    if unseen is Tower.TEXT:
        seen, other = other, seen
    assert other is None and len(seen) == 1
    seen.square().mean().backward()
    gradients = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}

    towers.zero_grad()
    text, image, _ = towers(batch.tokens, pixels(1))
    (text.square().mean() + image.square().mean()).backward()
    assert gradients.keys() == {n for n, p in towers.named_parameters() if p.grad is not None}
    of_unseen = [g for name, g in gradients.items() if name.startswith(f"{unseen.value}.")]
    assert of_unseen and not any(gradient.any() for gradient in of_unseen)


def test_a_students_tower_that_is_not_there_is_shown_nothing(plain, batch):
    captions = replace(batch, rows={"names": batch.rows["names"]})
    show = Showing(Towers(plain.clip, frozenset({Tower.TEXT})), CPU)
    shown = show(captions, captions.pixels, STUDENT)
    assert shown.pictures is None and not shown.blank


CONTRASTED = [[i, i, i, i if i < 2 else ABSENT, ABSENT, ABSENT] for i in range(4)]


def gradients_of_a_rank(
    rank: int, ranks: int, parts: int = 1, is_sharded: bool = False
) -> dict[str, torch.Tensor]:
    """Of the second of two steps; of two ranks, or parts, the second sees captions alone."""
    config = ModelConfig(name=TINY)
    clip = load(config)
    towers = student_of(clip, frozenset(Tower), config, temperature=True)
    show, model = Showing(towers, CPU), towers
    if is_sharded:
        mesh = init_device_mesh("cpu", (ranks,))
        for module in (*blocks_of(towers), towers):
            fully_shard(module, mesh=mesh)
    elif dist.is_initialized():
        model = DistributedDataParallel(towers)
    size, generator = clip.prepare.size, torch.manual_seed(0)
    pictures = Pixels((torch.randint(256, (2, 3, *size), generator=generator).byte(),))
    rows = {"contrast": all_columns(CONTRASTED).chunk(ranks)[rank]}
    batch = Batch(clip.tokenize(TEXTS), pictures, rows, Skips(), {}, frozenset())
    loss_fn = Contrastive(Contrastive.Options(batch_size=4), seed=0).loss_fn(FakeEncoder(0))
    for _ in range(2):
        towers.zero_grad()
        for part in batch.split(parts):
            learnt = embed(model, show(part, pictures, STUDENT))["contrast"]
            loss_fn(learnt, learnt)["info_nce"].backward()
    gradients = {name: p.grad for name, p in towers.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


@pytest.mark.parametrize("is_sharded", [False, True], ids=["ddp", "fsdp2"])
def test_a_rank_that_sees_captions_alone_takes_part(is_sharded):
    alone = gradients_of_a_rank(0, 1)
    for found in on_ranks(2, gradients_of_a_rank, 2, 1, is_sharded):
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-4)


def test_so_does_a_part_of_a_step_that_sees_captions_alone():
    """On two ranks, whose parts are one row each: without pictures are a rank's or a part's."""
    for found in on_ranks(2, gradients_of_a_rank, 2, 2):
        assert all(gradient.isfinite().all() for gradient in found.values())


def answers_of_a_rank(rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """By a teacher in parts; the second of two ranks sees captions alone."""
    clip = load(ModelConfig(name=TINY))
    lean(clip.model)
    towers = Towers(clip, frozenset(Tower))
    show = Showing(towers, CPU, is_teacher_whole=False)
    teacher = replica(towers, CPU, torch.float32, "sharded")
    pictures = Pixels((pixels(2, clip.prepare.size[0]),))
    rows = {"contrast": all_columns(TAUGHT).chunk(ranks)[rank]}
    batch = Batch(clip.tokenize(TEXTS), pictures, rows, Skips(), {}, frozenset())
    with torch.no_grad():
        seen = embed(teacher, show(batch, pictures, TEACHER))["contrast"]
    return seen.text, seen.image


TAUGHT = [[i, i, ABSENT, ABSENT, i, i if i < 2 else ABSENT] for i in range(4)]


def test_a_teacher_in_parts_answers_a_rank_that_sees_captions_alone_and_the_other():
    clip = load(ModelConfig(name=TINY))
    with torch.no_grad():
        seen = clip.tokenize(TEXTS), pixels(2, clip.prepare.size[0])
        text, image, _ = Towers(clip, frozenset(Tower))(*seen)
    (first, pictures), (second, none) = on_ranks(2, answers_of_a_rank, 2)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(torch.cat([first, second]), text)
    close(pictures, image)
    assert none is None
