"""Captions in rows embed as by themselves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.architectures import KINDS, PACKED
from trainer import Tower
from trainer.models.blocks import lean
from trainer.models.clip import Towers
from trainer.models.packing import (
    ROW,
    Packed,
    pack,
    pack_if_shorter,
    packed_text,
    rows_of,
    takes_packed,
)
from trainer.models.text_towers import cut_text

TEXTS = [f"a red hat {i} {'on a table ' * (i % 6)}" for i in range(40)]


@given(st.lists(st.integers(1, ROW), max_size=60))
def test_every_caption_has_a_place_of_its_own_in_a_row(lengths):
    rows, starts, num_rows = rows_of(np.array(lengths, dtype=np.int64))
    taken = np.zeros((num_rows, ROW), dtype=int)
    for length, row, start in zip(lengths, rows, starts, strict=True):
        assert start + length <= ROW
        taken[row, start : start + length] += 1
    assert taken.max(initial=0) <= 1 and taken.any(1).all()


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_rows_are_more_than_half_full_but_for_the_last(lengths):
    """No two rows could be one."""
    rows, _, num_rows = rows_of(np.array(lengths, dtype=np.int64))
    filled = sorted(np.bincount(rows, weights=lengths, minlength=num_rows))
    assert num_rows == 1 or filled[0] + filled[1] > ROW


def test_of_captions_as_they_are_a_hundredth_is_padding():
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(2.5, 0.5, 4096).astype(np.int64).clip(3, 77)
    _, _, num_rows = rows_of(lengths)
    assert lengths.sum() > 0.99 * num_rows * ROW


@pytest.mark.parametrize("pool_type", ["argmax", "first", "eos"])
def test_packed_captions_embed_and_train_as_by_themselves(plain, pool_type):
    tower = copy.deepcopy(plain.clip.model.text).requires_grad_(True)
    tower.pool_type, tower.eos_id = pool_type, 49407
    ours = copy.deepcopy(tower)
    lean(ours)
    tokens = plain.clip.tokenize(TEXTS)
    packed = pack(tokens, ours, 0)
    assert len(packed.tokens) < len(tokens) / 2
    wanted, found = cut_text(tower, tokens), packed_text(ours, packed)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    wanted.square().mean().backward()
    found.square().mean().backward()
    for (name, one), other in zip(tower.named_parameters(), ours.parameters(), strict=True):
        # Sums of what nearly cancels: rounding is of the largest of a parameter's gradients.
        atol = 1e-5 * one.grad.abs().max().item()
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=atol, msg=name)


def test_a_caption_sees_nothing_of_those_beside_it(plain):
    tower = copy.deepcopy(plain.clip.model.text)
    lean(tower)
    packed = pack(plain.clip.tokenize(TEXTS), tower, 0)
    wanted = packed_text(tower, packed)
    others = packed.captions != 7
    changed = packed._replace(tokens=torch.where(others, packed.tokens // 2, packed.tokens))
    found = packed_text(tower, changed)
    assert torch.equal(found[7], wanted[7]) and not torch.equal(found[8], wanted[8])
    assert found.isfinite().all()  # rows of padding alone as well


@pytest.mark.parametrize("kind", KINDS)
def test_only_towers_whose_captions_need_nothing_else_take_rows(originals, kind):
    clip = copy.deepcopy(originals[kind].clip)
    lean(clip.model)
    assert takes_packed(clip.model.text, clip.tokenize.pad_id) == (kind in PACKED)
    if kind in PACKED:
        towers = Towers(clip, frozenset({Tower.TEXT}))
        tokens = clip.tokenize(TEXTS)
        found = towers(pack(tokens, towers.text, 0), None)[0]
        torch.testing.assert_close(found, towers(tokens, None)[0], rtol=0, atol=1e-5)


def test_captions_that_fill_their_length_stay_as_they_are(plain):
    tower = plain.clip.model.text
    long = torch.ones(50, 77, dtype=torch.int64)  # of which a row takes one
    assert pack_if_shorter(long, tower, 0) is long
    assert isinstance(pack_if_shorter(plain.clip.tokenize(TEXTS), tower, 0), Packed)


def test_no_captions_are_no_rows(plain):
    packed = pack(torch.zeros(0, 1, dtype=torch.int64), plain.clip.model.text, 0)
    assert isinstance(packed, Packed) and packed.tokens.shape == (0, ROW)
