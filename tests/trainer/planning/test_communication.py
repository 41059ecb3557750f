"""Bytes that are sent, by hand; tests/slow/test_peaks.py holds them to real collectives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.planning.communication import sent_in_step
from trainer.planning.plan import Sizes
from trainer.strategies.launching import Launch

SIZES = Sizes(student=100, trained=80, moments=160, loaded=150, block=10, rest=20)
HALF = 2  # bytes in bf16; 4 in float32


@pytest.mark.parametrize(
    ("launch", "gradients", "weights"),
    [
        (Launch(), 0, 0),
        (Launch("ddp", 2, "bf16"), 2 * 80 * 4, 0),
        (Launch("zero1", 2, "bf16", parts=4), 2 * 80 * HALF, 80 * HALF),
        (Launch("zero2", 2, "bf16", parts=4), 4 * 2 * 80 * HALF, 80 * HALF),
        (Launch("zero3", 2, "bf16"), 80 * HALF, 2 * 100 * HALF),
        (Launch("fsdp2", 2, "bf16"), 80 * 4, (2 * 80 + 20) * HALF),
    ],
)
def test_two_devices_send_half_of_what_goes_round(launch, gradients, weights):
    sent = sent_in_step(launch, SIZES)
    assert sent.get("gradients", 0) == gradients / 2
    assert sent.get("weights", 0) == weights / 2


def test_muon_gathers_the_matrices_that_it_moves():
    launch = Launch("fsdp2", 2, "bf16")
    by_muon = sent_in_step(launch, replace(SIZES, moments=160 - 60))["weights"]
    assert by_muon - sent_in_step(launch, SIZES)["weights"] == 60 * 4 / 2


def test_a_teacher_in_parts_is_gathered_once_a_forward():
    sent = sent_in_step(Launch("ddp", 4, "bf16", parts=2), SIZES, shares_teacher=True)
    assert sent["teacher"] == 2 * 100 * HALF * 3 / 4
