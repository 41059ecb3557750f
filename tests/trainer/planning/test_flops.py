"""The operations of a step: by hand, by what really runs, for every kind of tower."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.architectures import KINDS, make
from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.data.batches import Batch
from trainer.data.pixels import Pixels
from trainer.data.skips import Skips
from trainer.models.clip import Towers, student_of
from trainer.models.text_towers import lengths_of
from trainer.planning import flops
from trainer.planning.flops import Flops, weightless

BOTH = frozenset(Tower)


def student(kind: str, folder, **options) -> Towers:
    config = ModelConfig(name=f"tiny-{kind}", **options)
    return student_of(make(kind, folder).clip, BOTH, config, temperature=False)


def batch_of(tokens: torch.Tensor, pictures: int) -> Batch:
    """Each caption and picture seen by student and teacher."""
    rows = [[i, 0, i, -1, i, -1] for i in range(len(tokens))]
    rows += [[len(tokens) + i, 0, -1, i, -1, i] for i in range(pictures)]
    pixels = Pixels((torch.zeros(pictures, 3, 32, 32, dtype=torch.uint8),))
    shards: frozenset[str] = frozenset()
    return Batch(tokens, pixels, {"keep": torch.tensor(rows)}, Skips(), {"keep": []}, shards)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("small", [0, flops.SMALL], ids=["from shapes", "computed"])
def test_a_step_is_what_its_forwards_and_backward_compute(kind, small, tmp_path, monkeypatch):
    """All captions of one length, so that nothing is padded: the counter sees the same."""
    monkeypatch.setattr(flops, "SMALL", small)
    towers = student(kind, tmp_path)
    tokens, pixels = torch.ones(4, 12, dtype=torch.int64), torch.zeros(3, 3, 32, 32).byte()
    with FlopCounterMode(display=False) as counter:
        text, image, _ = towers(tokens, pixels)
        (text.sum() + image.sum()).backward()
        towers(tokens, pixels)  # with gradients: the counter is blind to what is fused without
    counted = Flops.of(towers).of_step(batch_of(tokens, pictures=3))
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_padding_does_not_count(tmp_path):
    work = Flops.of(student("plain", tmp_path))
    short, long = torch.ones(1, 5, dtype=torch.int64), torch.ones(1, 20, dtype=torch.int64)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 15)), long])
    each = [work.of_step(batch_of(tokens, 0)) for tokens in (short, long)]
    assert work.of_step(batch_of(padded, 0)) == pytest.approx(sum(each))


@pytest.mark.parametrize("small", [0, flops.SMALL], ids=["from shapes", "computed"])
def test_what_is_frozen_has_no_backward(small, tmp_path, monkeypatch):
    monkeypatch.setattr(flops, "SMALL", small)
    whole = Flops.of(student("plain", tmp_path))
    frozen = Flops.of(student("plain", tmp_path, freeze=["image.*"]))
    assert whole.image.backward > 0
    assert frozen.image.backward == 0
    assert frozen.image.forward == whole.image.forward


def test_lengths_end_with_the_last_token():
    assert lengths_of(torch.tensor([[1, 2, 0, 0], [1, 0, 3, 0]]), 0).tolist() == [2, 3]
    assert lengths_of(torch.empty(0, 4, dtype=torch.int64), 0).tolist() == []


def test_counting_copies_no_weight(tmp_path):
    towers = student("plain", tmp_path)
    copied = weightless(towers)
    assert all(tensor.is_meta for tensor in copied.state_dict().values())
    assert not any(tensor.is_meta for tensor in towers.state_dict().values())
