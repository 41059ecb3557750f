from __future__ import annotations

from random import Random

import pytest
import torch
import torch.multiprocessing as multiprocessing

from plugins.contrastive import Contrastive, number_of
from tests.conftest import picture
from trainer import BadSample, Embeddings, Sample
from trainer.testing import FakeEncoder, check_objective, default_samples

WIDTH = 6


def contrastive(batch_size: int = 8) -> Contrastive:
    return Contrastive(Contrastive.Options(batch_size=batch_size), seed=0)


def label_of(**parts) -> int:
    return contrastive().pair(Sample("key", **parts), 0, Random(0)).label


def test_it_keeps_the_contract():
    check_objective(Contrastive, {"batch_size": 4})


def test_it_keeps_the_contract_where_some_samples_have_no_picture():
    samples = default_samples() + [Sample("t", "only words")] * 3
    check_objective(Contrastive, {"batch_size": 4}, samples)


def test_positives_are_of_one_label_or_without_one_of_one_caption():
    assert label_of(text="a", label="joe") == label_of(text="b", label="joe")
    assert label_of(text="a", label="joe") != label_of(text="a", label="ann")
    assert label_of(text="a") == label_of(text="a") != label_of(text="b")
    assert label_of(text="joe") != label_of(text="a", label="joe")


def test_two_captions_that_crc32_takes_for_one_are_two():
    assert number_of("plumless") != number_of("buckeroo")


def test_labels_have_63_bits_and_are_the_same_in_every_process():
    numbers = [number_of(f"caption {i}") for i in range(2000)]
    assert all(0 <= number < 2**63 for number in numbers) and len(set(numbers)) == 2000
    assert max(numbers) > 2**62 and torch.tensor(numbers).tolist() == numbers
    assert number_of("a dog") == 9_151_722_581_430_185_315


def test_a_sample_without_a_caption_is_bad_and_without_a_picture_is_not():
    with pytest.raises(BadSample, match="no caption"):
        contrastive().pair(Sample("a", None, picture(1)), 0, Random(0))
    with pytest.raises(BadSample, match="undecodable picture"):
        contrastive().pair(Sample("a", "a", b"x"), 0, Random(0))
    assert contrastive().pair(Sample("a", "a"), 0, Random(0)).student_image is None


def rows(batch_size: int, pictures: range) -> Embeddings:
    """The embeddings of a step in which the rows of `pictures` have one."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(batch_size, WIDTH, generator=generator)
    image = torch.randn(batch_size, WIDTH, generator=generator)
    labels = torch.arange(batch_size) % 3 + 2**61
    return Embeddings(text, image[pictures], labels, labels[pictures], torch.tensor(5.0))


def part(whole: Embeddings, start: int, stop: int, pictures: range) -> Embeddings:
    """A rank's rows, with gradient."""
    image, labels = None, None
    if own := [i for i, row in enumerate(pictures) if start <= row < stop]:
        image, labels = whole.image[own].requires_grad_(), whole.image_labels[own]
    text = whole.text[start:stop].clone().requires_grad_()
    return Embeddings(text, image, whole.text_labels[start:stop], labels, whole.logit_scale)


def literal_loss(whole: Embeddings) -> float:
    """Multi-positive InfoNCE, written out row by row."""

    def one_way(left, right, left_labels, right_labels):
        losses = []
        for row, label in zip(left, left_labels):
            scores = [float(whole.logit_scale * row.dot(x) / row.norm() / x.norm()) for x in right]
            total = sum(torch.tensor(scores, dtype=torch.float64).exp().tolist())
            own = [s for s, other in zip(scores, right_labels) if other == label]
            if own:
                losses.append(-sum(s - torch.tensor(total).log().item() for s in own) / len(own))
        return sum(losses) / len(losses)

    image, text = (whole.image, whole.image_labels), (whole.text, whole.text_labels)
    return (
        one_way(image[0], text[0], image[1], text[1])
        + one_way(text[0], image[0], text[1], image[1])
    ) / 2


def _loss_of_a_rank(rank: int, store: str, pictures: range, told) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    whole = rows(8, pictures)
    own = part(whole, rank * 4, rank * 4 + 4, pictures)
    loss = contrastive(8).loss_fn(FakeEncoder(0))(own, own)["info_nce"]
    (loss / 2).backward()  # ranks' gradients are averaged
    told.put((rank, loss.item(), own.text.grad.tolist()))
    torch.distributed.destroy_process_group()


# In the second case rank 1 has no picture at all: it must take part and not hang the other.
@pytest.mark.parametrize("pictures", [range(8), range(3)])
def test_over_two_ranks_the_loss_and_its_gradient_are_those_of_one(tmp_path, pictures):
    whole = rows(8, pictures)
    alone = part(whole, 0, 8, pictures)
    loss = contrastive(8).loss_fn(FakeEncoder(0))(alone, alone)["info_nce"]
    loss.backward()
    assert loss.item() == pytest.approx(literal_loss(whole), abs=1e-5)

    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    processes = [
        fork.Process(target=_loss_of_a_rank, args=(rank, str(tmp_path / "store"), pictures, told))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    found = sorted(told.get() for _ in processes)
    assert [one[1] for one in found] == pytest.approx([loss.item()] * 2, abs=1e-5)
    gradient = torch.cat([torch.tensor(one[2]) for one in found])
    assert torch.allclose(gradient, alone.text.grad, atol=1e-5)
