from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils.fsdp_utils import (
    fsdp2_prepare_auto_wrap_policy,
    get_module_children_bottom_up,
)
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from tests.conftest import TINY
from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.strategies.preparing import blocks_of, innermost_blocks_of, kinds_to_wrap


@pytest.mark.parametrize("recomputed", [False, True])
def test_accelerate_finds_each_block_by_the_classes_it_is_given(recomputed):
    """Each is gathered by itself, also where its activations are computed again."""
    config = ModelConfig(name=TINY, random_weights=True)
    clip = clips.load(config)
    lean(clip.model)
    student = clips.student_of(clip, frozenset(Tower), config, temperature=False)
    blocks = len(blocks_of(student))
    if recomputed:
        clips.recompute_activations(student, False)
    policy = fsdp2_prepare_auto_wrap_policy(
        SimpleNamespace(
            auto_wrap_policy=partial(transformer_auto_wrap_policy, transformer_layer_cls=set()),
            transformer_cls_names_to_wrap=kinds_to_wrap(student),
        ),
        student,
    )
    found = [module for module in get_module_children_bottom_up(student)[:-1] if policy(module)]
    inner = {id(getattr(module, "_checkpoint_wrapped_module", module)) for module in found}
    assert len(inner) == blocks > 1


class Counting(nn.Sequential):
    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return super().forward(x)


def stage() -> nn.Module:
    return nn.Sequential(nn.Sequential(*(Counting(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))))


def test_what_is_in_a_block_of_blocks_is_computed_twice_not_thrice():
    """As ConvNeXt's are: stages of blocks."""
    towers = nn.Sequential(stage(), stage())
    towers.logit_scale = nn.Parameter(torch.ones(1))
    assert len(blocks_of(towers)) > len(innermost_blocks_of(towers)) == 6
    clips.recompute_activations(towers, False)
    Counting.calls = 0
    towers(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert Counting.calls == 2 * 6


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = Counting(nn.Linear(2, 2))
        self.mlp = nn.Linear(2, 2)


def test_what_is_a_part_of_a_block_and_elsewhere_a_block_is_computed_again_with_its_whole():
    stem = nn.Sequential(Counting(nn.Linear(2, 2)), Counting(nn.Linear(2, 2)))
    model = nn.ModuleDict({"stem": stem, "blocks": nn.Sequential(Holding(), Holding())})
    found = Counter(type(one) for one in innermost_blocks_of(model))
    assert found == {Counting: 2, Holding: 2}
