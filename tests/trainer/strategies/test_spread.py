"""fp16's scale of losses goes on where it stood.

Weights and moments themselves: test_checkpoint.py, test_strategies.py.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainer.strategies.spread import Spread
from trainer.strategies.zero import ZeroSpread

LOST = (3, 9)  # steps whose gradient is infinite
STEPS, GROWS_AFTER = 24, 4


class OfTorch:
    """Its own scaler, which it has on CPUs as well, with a parameter to train."""

    def __init__(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=GROWS_AFTER)
        self.weight = nn.Parameter(torch.ones(2))
        self.adamw = torch.optim.AdamW([self.weight])
        wrapped = SimpleNamespace(optimizer=self.adamw, scaler=self.scaler)
        self.spread = Spread({"weight": self.weight}, wrapped)

    def step(self, number: int) -> float:
        factor = float("inf") if number in LOST else 1.0
        self.scaler.scale(self.weight.sum() * factor).backward()
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad()
        return self.scaler.get_scale()


class OfDeepSpeed:
    def __init__(self):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        self.scaler = DynamicLossScaler(
            init_scale=1024.0, scale_window=GROWS_AFTER, min_scale=1, delayed_shift=2,
            consecutive_hysteresis=False,
        )  # fmt: skip
        zero = SimpleNamespace(loss_scaler=self.scaler, optimizer=None)
        self.spread = ZeroSpread({}, SimpleNamespace(optimizer=zero))

    def step(self, number: int) -> float:
        self.scaler.update_scale(overflow=False)  # to tell of one it needs a group of processes
        return self.scaler.cur_scale


@pytest.mark.parametrize("kind", [OfTorch, OfDeepSpeed])
@pytest.mark.parametrize("stop", [1, 3, 5, 6, 12])
def test_the_scale_goes_on_as_if_the_run_had_not_stopped(kind, stop):
    whole = kind()
    wanted = [whole.step(number) for number in range(STEPS)]
    assert len(set(wanted)) > 3
    before, after = kind(), kind()
    first = [before.step(number) for number in range(stop)]
    after.spread.load_scale(before.spread.scale())
    assert first + [after.step(number) for number in range(stop, STEPS)] == wanted


@pytest.mark.parametrize(("earlier", "later"), [(OfTorch, OfDeepSpeed), (OfDeepSpeed, OfTorch)])
def test_another_strategy_takes_the_scale_over(earlier, later):
    before, after = earlier(), later()
    for number in range(5):
        before.step(number)
    after.spread.load_scale(before.spread.scale())
    for of in ("scale", "steps"):
        assert after.spread.scale()[of] == before.spread.scale()[of]


def test_deepspeeds_patience_with_overflows_goes_on():
    before, after = OfDeepSpeed(), OfDeepSpeed()
    assert before.scaler.cur_hysteresis == 2
    before.scaler.cur_hysteresis = 1  # as after one
    after.spread.load_scale(before.spread.scale())
    assert after.scaler.cur_hysteresis == 1


def test_other_precisions_have_none():
    plain = Spread({}, SimpleNamespace(optimizer=None, scaler=None))
    plain.load_scale(OfTorch().spread.scale())
    assert plain.scale() == {}
