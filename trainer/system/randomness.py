"""Where the random numbers of this process stand: torch's, Python's, numpy's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of numbers and tensors alone, so that it is loaded with `weights_only`."""
    state: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = state
    found = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(found: dict[str, Any]) -> None:
    """As it was given. A GPU's is left as it is where there was none."""
    torch.set_rng_state(found["torch"])
    random.setstate(found["python"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
