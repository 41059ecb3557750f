from functools import partial
from types import SimpleNamespace

import pytest
from accelerate.utils.fsdp_utils import (
    fsdp2_prepare_auto_wrap_policy,
    get_module_children_bottom_up,
)
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from tests.conftest import TINY
from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.strategies.preparing import blocks_of, kinds_to_wrap


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
