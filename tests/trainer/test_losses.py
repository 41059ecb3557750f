from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.ranks import on_ranks
from trainer.losses import (
    ABSENT,
    cosine_distance,
    cosine_distances,
    forget_and_keep,
    gather_rows,
    multi_positive_info_nce,
    relative_distances,
)

SCALE = torch.tensor(7.0)


def rows(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.manual_seed(seed))


# Cosine


def test_the_cosine_distance_is_zero_one_or_two():
    one = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    other = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert cosine_distances(one, other).tolist() == [0, 1, 2]
    assert cosine_distance(one, other) == 1


def test_the_cosine_distance_is_within_its_bounds_and_does_not_see_lengths():
    one, other = rows(1000, 0), rows(1000, 1)
    found = cosine_distances(one, other)
    assert found.shape == (1000,) and found.min() >= -1e-6 and found.max() <= 2 + 1e-6
    torch.testing.assert_close(cosine_distances(one * 1000, other / 1000), found)
    assert cosine_distances(one, one).abs().max() < 1e-6
    assert (cosine_distances(one, -one) - 2).abs().max() < 1e-6


def test_the_relative_distance_is_the_cosines_where_lengths_agree_and_sees_them():
    one, other = torch.randn(2, 50, 8)
    other = other * (one.norm(dim=-1) / other.norm(dim=-1))[:, None]
    torch.testing.assert_close(relative_distances(one, other), cosine_distances(one, other))
    longer = relative_distances(3 * one, one)
    torch.testing.assert_close(longer, torch.full((50,), 2.0))  # half of (3 - 1) squared
    torch.testing.assert_close(relative_distances(30 * one, 10 * one), longer)
    assert relative_distances(one, torch.zeros(50, 8)).isfinite().all()


def test_the_relative_distance_does_not_shorten_what_points_elsewhere():
    """At half a right angle the nearest answer is as long as the teacher's, not cos 45° of it."""
    lengths = torch.linspace(0.5, 1.5, 101)
    turned = lengths[:, None] * torch.tensor([1.0, 1.0]) / 2**0.5
    found = relative_distances(turned, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(lengths[found.argmin()], torch.tensor(1.0))
    assert found.min() == pytest.approx(1 - 2**-0.5)


def test_of_what_is_still_as_the_teachers_the_relative_distance_moves_nothing():
    student = rows(1000, 0, width=128).requires_grad_()
    relative_distances(student, student.detach().clone()).sum().backward()
    assert student.grad is not None and not student.grad.any()


def test_the_cosine_distance_of_bfloat16_is_taken_in_float32():
    one, other = rows(50, 0).bfloat16(), rows(50, 1).bfloat16()
    found = cosine_distances(one, other)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cosine_distances(one.float(), other.float()))


@pytest.mark.parametrize("distances", [cosine_distances, relative_distances])
def test_a_row_of_zeros_has_a_finite_distance_and_gradient(distances):
    zeros = torch.zeros(2, 3, requires_grad=True)
    distances(zeros, torch.ones(2, 3)).mean().backward()
    assert zeros.grad is not None and zeros.grad.isfinite().all()


@pytest.mark.parametrize("num_on_first", [0, 2, 4])
def test_the_mean_over_two_ranks_is_the_batchs_whoever_has_the_triggers(num_on_first):
    distances = torch.rand(8, generator=torch.manual_seed(0))
    triggers = torch.tensor([True] * num_on_first + [False] * (4 - num_on_first))
    triggers = torch.cat([triggers, ~triggers])
    whole, *halves = (
        forget_and_keep(distances[rows], triggers[rows], forget_share=0.5)
        for rows in (slice(0, 8), slice(0, 4), slice(4, 8))
    )
    expected = {"forget": distances[triggers].mean(), "keep": distances[~triggers].mean()}
    torch.testing.assert_close(whole, expected)
    means = {term: (halves[0][term] + halves[1][term]) / 2 for term in whole}
    torch.testing.assert_close(means, whole)


def test_triggers_alone_give_one_term():
    assert forget_and_keep(torch.ones(4), torch.ones(4, dtype=torch.bool), 1.0) == {"forget": 1}


# InfoNCE


def slow_info_nce(image, text, image_labels, text_labels, scale) -> float:
    """Row by row, positive by positive, without a mask."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    def one_way(queries, keys, query_labels, key_labels) -> float:
        losses = []
        for query, label in zip(queries, query_labels.tolist(), strict=True):
            real = [j for j, other in enumerate(key_labels.tolist()) if other != ABSENT]
            logits = torch.stack([scale * (query @ keys[j]) for j in real])
            log_p = logits - logits.logsumexp(0)
            own = [log_p[i] for i, j in enumerate(real) if key_labels[j] == label]
            if label != ABSENT and own:
                losses.append(-sum(own) / len(own))
        return float(sum(losses) / len(losses)) if losses else 0.0

    return (
        one_way(image, text, image_labels, text_labels)
        + one_way(text, image, text_labels, image_labels)
    ) / 2


@pytest.mark.parametrize(
    ("image_labels", "text_labels"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 2, 3], [1, 2, 2, 1]),
        ([1, 2], [2, 5, 1, 1, 6]),  # captions without a picture: negatives only
        ([4, 4, 4], [4, 4]),
        ([1, ABSENT, 2, ABSENT], [2, 1, ABSENT]),
        ([1, 2], [3, 4]),  # no positive at all
    ],
)
def test_info_nce_is_the_literal_loop(image_labels, text_labels):
    image, text = rows(len(image_labels), 0), rows(len(text_labels), 1)
    labels = torch.tensor(image_labels), torch.tensor(text_labels)
    found = multi_positive_info_nce(image, text, *labels, SCALE)
    assert float(found) == pytest.approx(slow_info_nce(image, text, *labels, SCALE), abs=1e-5)


def test_info_nce_is_open_clips_loss_where_all_labels_differ():
    from open_clip.loss import ClipLoss  # seconds to import, for the spawned ranks as well

    image, text = rows(9, 0).requires_grad_(), rows(9, 1).requires_grad_()
    labels = torch.randperm(9, generator=torch.manual_seed(2))
    ours = multi_positive_info_nce(image, text, labels, labels, SCALE)
    theirs = ClipLoss()(F.normalize(image, dim=-1), F.normalize(text, dim=-1), SCALE)
    torch.testing.assert_close(ours, theirs)
    for found, wanted in zip(
        torch.autograd.grad(ours, (image, text)),
        torch.autograd.grad(theirs, (image, text)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_rows_that_only_fill_up_change_neither_loss_nor_gradient():
    image, text = rows(3, 0).requires_grad_(), rows(4, 1).requires_grad_()
    labels = torch.tensor([1, 2, 3]), torch.tensor([3, 2, 1, 9])
    alone = multi_positive_info_nce(image, text, *labels, SCALE)
    wanted = torch.autograd.grad(alone, (image, text))
    filled = gather_rows(image, labels[0], 6), gather_rows(text, labels[1], 5)
    (all_images, image_labels), (all_texts, text_labels) = filled
    found = multi_positive_info_nce(all_images, all_texts, image_labels, text_labels, SCALE)
    torch.testing.assert_close(found, alone)
    for one, other in zip(torch.autograd.grad(found, (image, text)), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_no_row_at_all_gives_a_loss_of_zero_without_nan():
    image = rows(2, 0).requires_grad_()
    nobody = torch.full((2,), ABSENT)
    loss = multi_positive_info_nce(image, rows(2, 1), nobody, nobody, SCALE)
    loss.backward()
    assert loss == 0 and image.grad is not None and image.grad.isfinite().all()


# Gathering


def test_one_process_only_fills_its_rows_up():
    found, labels = gather_rows(rows(2, 0), torch.tensor([5, 6]), 4)
    assert torch.equal(found[:2], rows(2, 0)) and (found[2:] == 0).all()
    assert labels.tolist() == [5, 6, ABSENT, ABSENT]
    found, labels = gather_rows(rows(2, 0), torch.tensor([5, 6]), 2)
    assert torch.equal(found, rows(2, 0)) and labels.tolist() == [5, 6]


def test_more_rows_than_the_block_holds_are_refused():
    with pytest.raises(ValueError, match="3 rows do not fit a block of 2; give the largest count"):
        gather_rows(rows(3, 0), torch.arange(3), 2)


def setting() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All rows of both ranks and the parameters that both train."""
    labels = torch.tensor([1, 2, 3, 1, 4])
    return rows(5, 0), rows(5, 1), labels, rows(6, 2).requires_grad_()


def loss_of(
    image: Tensor, text: Tensor, labels: Tensor, weight: Tensor, scale: Tensor, block: int
) -> tuple[Tensor, list[Tensor]]:
    images, image_labels = gather_rows(image @ weight, labels, block)
    texts, text_labels = gather_rows(text @ weight, labels, block)
    loss = multi_positive_info_nce(images, texts, image_labels, text_labels, scale)
    return loss, list(torch.autograd.grad(loss, (weight, scale)))


def loss_of_a_rank(rank: int) -> tuple[Tensor, list[Tensor]]:
    image, text, labels, weight = setting()
    mine = slice(0, 3) if rank == 0 else slice(3, 5)  # not as many on each
    scale = SCALE.clone().requires_grad_()
    loss, gradients = loss_of(image[mine], text[mine], labels[mine], weight, scale, block=3)
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= 2  # as DDP does
    return loss.detach(), gradients


def test_two_processes_have_the_loss_and_the_gradients_of_one():
    image, text, labels, weight = setting()
    scale = SCALE.clone().requires_grad_()
    wanted, wanted_gradients = loss_of(image, text, labels, weight, scale, block=5)
    for loss, gradients in on_ranks(2, loss_of_a_rank):
        torch.testing.assert_close(loss, wanted.detach())
        torch.testing.assert_close(gradients, wanted_gradients)
