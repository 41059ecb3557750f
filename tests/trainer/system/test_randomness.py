"""Random numbers go on where they stood, whoever draws them."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from trainer.system.randomness import random_state, set_random_state


def draw() -> tuple:
    return random.random(), random.gauss(0, 1), *np.random.normal(size=3), *torch.rand(3).tolist()


def test_all_go_on_from_a_file_that_holds_no_code():
    draw()  # of pairs that are drawn at once the second is kept
    kept = io.BytesIO()
    torch.save([random_state()], kept)
    wanted = [draw() for _ in range(3)]
    kept.seek(0)
    set_random_state(torch.load(kept, weights_only=True)[0])
    assert [draw() for _ in range(3)] == wanted
