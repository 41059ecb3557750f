"""Lean blocks give what open_clip's own give, and compute less."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from tests.trainer.architectures import KINDS, PACKED, TEXTS, pixels
from trainer import Tower
from trainer.models.blocks import AttentionOnCPU, LeanBlock, SelfAttention, lean
from trainer.models.clip import Towers


@pytest.mark.parametrize("kind", KINDS)
def test_lean_blocks_give_the_same(originals, kind):
    clip = originals[kind].clip
    ours = copy.deepcopy(clip)
    lean(ours.model)
    names = list(clip.model.state_dict())
    assert list(ours.model.state_dict()) == names
    wanted, found = (
        Towers(one, frozenset(Tower)).requires_grad_(True) for one in (copy.deepcopy(clip), ours)
    )
    tokens = clip.tokenize(TEXTS)
    for one, other in zip(found(tokens, pixels()), wanted(tokens, pixels()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        one.square().sum().backward()
        other.square().sum().backward()
    gradients = {name: p.grad for name, p in wanted.named_parameters()}
    for name, p in found.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_mlp_is_computed_for_what_is_read_alone(originals, kind):
    clip = copy.deepcopy(originals[kind].clip)
    lean(clip.model)
    rows: dict[str, int] = {}

    def note(name: str, module: nn.Module, given: tuple[Tensor]) -> None:
        rows[name] = given[0].flatten(0, -2).shape[0]

    for name, module in clip.model.named_modules():
        if isinstance(module, LeanBlock):
            module.mlp.register_forward_pre_hook(partial(note, name))
    towers = Towers(clip, frozenset(Tower))
    towers(clip.tokenize(TEXTS), pixels(2))
    last = {name.split(".")[0]: n for name, n in rows.items() if name.endswith("resblocks.1")}
    assert (last.get("text") == 3) == (kind in PACKED)
    assert (last.get("visual") == 2) == (kind not in {"resnet", "coca"})  # no blocks; all tokens


def test_attention_to_something_else_stays_torchs():
    plain = nn.Sequential(ResidualAttentionBlock(16, 2))
    crossed = nn.Sequential(ResidualAttentionBlock(16, 2, is_cross_attention=True))
    for model in (plain, crossed):
        lean(model)
    assert type(plain[0].attn) is SelfAttention
    assert type(crossed[0].attn) is nn.MultiheadAttention


@pytest.mark.parametrize("shape", [None, (5, 5), (3, 1, 5, 5), (3, 2, 5, 5)], ids=str)
def test_attention_on_a_cpu_is_torchs_and_its_gradient_the_derivative(shape):
    torch.manual_seed(0)
    projected = torch.randn(3, 5, 3 * 8, dtype=torch.float64, requires_grad=True)
    mask = None if shape is None else torch.randn(shape, dtype=torch.float64)
    found = AttentionOnCPU.apply(projected, 2, mask)
    q, k, v = projected.unflatten(-1, (3, 2, 4)).transpose(1, 3).unbind(2)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda x: AttentionOnCPU.apply(x, 2, mask), projected)


def test_attention_on_a_cpu_in_bf16_is_near_that_in_fp32():
    torch.manual_seed(0)
    block = nn.Sequential(ResidualAttentionBlock(16, 2))
    lean(block)
    x, mask = torch.randn(4, 6, 16, requires_grad=True), torch.randn(6, 6)
    wanted = block[0](x, attn_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = block[0](x, attn_mask=mask)
    for one, other in ((found, wanted), (_gradient(found, x), _gradient(wanted, x))):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.1)


def _gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.square().sum(), x)[0]
