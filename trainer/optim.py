"""The optimizer: what it trains, the rate of a step, the pull to the original weights."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig


def make_optimizer(student: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what trains; no weight decay on vectors (norms, biases, the temperature)."""
    trained = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step 1, 2, ... steps; open_clip's own cosine, which reaches 0 after the last."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "cosine":
        share = (step - 1 - config.warmup_steps) / (steps - config.warmup_steps)
        return config.lr * (1 + cos(pi * share)) / 2
    if config.schedule == "steps":
        return config.lr * config.gamma ** sum(step > milestone for milestone in config.milestones)
    return config.lr


def pull(student: nn.Module, weight: float) -> Callable[[], Tensor]:
    """The paper's regulariser: weight times the sum of each tensor's distance to its original.

    Called before the first step, while the weights are the original's. The norm is not squared
    (arXiv 2310.08320, their code); its gradient at the original itself is taken as zero.
    """
    if not weight:
        return lambda: torch.zeros(())  # and no second copy of the weights
    trained = [p for p in student.parameters() if p.requires_grad]
    originals = [p.detach().clone() for p in trained]

    def distance() -> Tensor:
        squares = torch.stack(
            [(p - q).square().sum() for p, q in zip(trained, originals, strict=True)]
        )
        return weight * torch.where(squares > 0, squares.clamp(min=1e-24).sqrt(), 0.0).sum()

    return distance
