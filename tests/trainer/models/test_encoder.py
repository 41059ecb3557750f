from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.conftest import TINY, picture
from tests.ranks import on_ranks
from tests.trainer.architectures import TEXTS, Original
from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.models import encoder as encoders
from trainer.models.clip import Towers
from trainer.models.encoder import ClipEncoder, on_device

BOTH = frozenset(Tower)
MANY = [*TEXTS, "hat " * 12, "a"]
CPU = torch.device("cpu")


class Spy(nn.Linear):
    """Notes where it is sent."""

    def __init__(self):
        super().__init__(1, 1)
        self.sent: list[str] = []

    def to(self, device):
        self.sent.append(str(device))
        return self


def test_a_tower_elsewhere_is_on_the_device_for_one_call_and_goes_back():
    tower = Spy()
    with on_device(tower, torch.device("meta")):
        assert tower.sent == ["meta"]
    assert tower.sent == ["meta", "cpu"]
    with pytest.raises(KeyError), on_device(tower, torch.device("meta")):
        raise KeyError
    assert tower.sent == ["meta", "cpu"] * 2


def test_a_tower_that_is_there_already_is_left_alone():
    tower = Spy()
    with on_device(tower, CPU):
        assert tower.sent == []


def test_the_encoder_moves_only_the_tower_that_it_runs_and_not_in_inference_mode(
    plain, monkeypatch
):
    towers = clips.frozen(copy.deepcopy(Towers(plain.clip, BOTH)))
    moved = []

    def fake(tower, device):
        moved.append((tower, device, torch.is_inference_mode_enabled()))
        return real(tower, CPU)

    real = encoders.on_device
    monkeypatch.setattr(encoders, "on_device", fake)
    encoder = ClipEncoder(towers, towers, plain.clip, CPU)
    encoder.encode_text(TEXTS)
    encoder.encode_image([picture(1)])
    assert moved == [(towers.text, CPU, False), (towers.image, CPU, False)]


def test_encoded_rows_are_those_of_single_calls_in_order(plain):
    towers = clips.frozen(Towers(plain.clip, BOTH))
    encoder = ClipEncoder(towers, towers, plain.clip, CPU, batch=2)
    for row, text in zip(encoder.encode_text(MANY), MANY, strict=True):
        torch.testing.assert_close(row, towers(plain.clip.tokenize([text]), None)[0][0])
    pictures = [picture(1), b"no picture", picture(2)]
    embedded = encoder.encode_image(pictures)
    assert embedded[1].isnan().all() and not embedded[[0, 2]].isnan().any()
    alone = encoder.encode_image(pictures[2:])
    torch.testing.assert_close(embedded[2:], alone)


def _encode_as_rank(rank: int, file: Path, original: Original) -> None:
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    towers = clips.frozen(Towers(original.clip, BOTH))
    encoder = ClipEncoder(towers, towers, original.clip, CPU, batch=2)
    pictures = [picture(i) for i in range(5)]
    found = encoder.encode_text(MANY), encoder.encode_text(["a"]), encoder.encode_image(pictures)
    torch.save(found, f"{file}-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_share_the_rows_and_both_get_all_in_order(plain, tmp_path):
    assert plain.clip  # loaded before the fork
    file = tmp_path / "ranks"
    torch.multiprocessing.start_processes(
        _encode_as_rank, (file, plain), nprocs=2, start_method="fork"
    )
    towers = clips.frozen(Towers(plain.clip, BOTH))
    encoder = ClipEncoder(towers, towers, plain.clip, CPU)
    wanted = (
        encoder.encode_text(MANY),
        encoder.encode_text(["a"]),  # one rank has no row
        encoder.encode_image([picture(i) for i in range(5)]),
    )
    for rank in range(2):
        torch.testing.assert_close(torch.load(f"{file}-{rank}.pt"), wanted)


def _by_a_set(rank: int) -> str:
    """What a rank is told that asks for as many names, in its own order."""
    clip = clips.load(ModelConfig(name=TINY, random_weights=True))
    towers = clips.frozen(Towers(clip, BOTH))
    names = ["Joe Doe", "Jan Roe"]
    try:
        ClipEncoder(towers, towers, clip, CPU).encode_text(names[::-1] if rank else names)
    except RuntimeError as error:
        return str(error)
    return ""


def test_ranks_that_ask_in_another_order_are_told():
    """A set of names has another order in each process; rows would go to others' names."""
    for told in on_ranks(2, _by_a_set):
        assert "may not go by the order of a set" in told and "Joe" not in told


def test_what_an_encoder_gives_may_be_the_target_of_a_loss(plain):
    towers = clips.frozen(Towers(plain.clip, BOTH))
    target = ClipEncoder(towers, towers, plain.clip, CPU).encode_text(TEXTS)
    weight = nn.Parameter(torch.ones(()))
    (weight * target).sum().backward()  # an inference tensor cannot be kept for it
    assert weight.grad is not None
