"""The optimizer: what it trains, the rate of a step, the pull to the original weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import cos, pi, sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.configuration.sections import OptimizerConfig
from trainer.strategies.preparing import blocks_of
from trainer.strategies.spread import placed_like, whole

TINY = 1e-12  # a distance: below it there is no direction
MOMENTUM = 0.95  # Muon's own
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3 and x^5, Muon's own
ROUNDS = 5  # of it


def make_optimizer(student: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over what trains, or Muon over the matrices of blocks and AdamW over all else.

    No weight decay on vectors (norms, biases, the temperature). Each group has its highest rate as
    `initial_lr`, as torch's own schedules name it. Raises ValueError where Muon moves nothing.
    """
    check_movable(student, config)
    matrices = matrices_of(student) if config.kind == "muon" else frozenset()
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            of_images = name.startswith("image.")
            lr = config.image_lr if of_images and config.image_lr else config.lr
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((parameter in matrices, lr, decay), []).append(parameter)
    made = [
        {"params": params, "initial_lr": lr, "lr": lr, "weight_decay": decay, "is_muon": is_matrix}
        for (is_matrix, lr, decay), params in groups.items()
    ]
    by_muon, by_adamw = ([one for one in made if one["is_muon"] is on] for on in (True, False))
    adamw = None
    if by_adamw:
        adamw = torch.optim.AdamW(by_adamw, betas=config.betas, eps=config.eps, fused=True)
    return adamw if adamw and not by_muon else Muon(by_muon, adamw)


def check_movable(student: nn.Module, config: OptimizerConfig) -> None:
    """Raises ValueError where Muon moves nothing."""
    if config.kind == "muon" and not matrices_of(student):
        raise ValueError(
            "optimizer.kind=muon moves the matrices of a tower's blocks, and none of those train "
            "here; set optimizer.kind=adamw"
        )


def matrices_of(student: nn.Module) -> frozenset[nn.Parameter]:
    """Of its blocks, those that train: what Muon is for; not tables, nor what leads in and out."""
    inside = (p for block in blocks_of(student) for p in block.parameters())
    return frozenset(p for p in inside if p.requires_grad and p.dim() == 2)


class Muon(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon) for matrices, AdamW beside it, as one.

    A matrix moves by its momentum made orthogonal: as far in every direction, not mostly in the
    few that most gradients share. The step is as long as AdamW's (arXiv 2502.16982), so that one
    rate serves both. Of FSDP2's matrices each rank computes the whole, and moves its part.
    """

    def __init__(self, groups: list[dict[str, Any]], adamw: torch.optim.AdamW | None):
        """adamw: None where it moves all."""
        self._adamw = adamw
        super().__init__([*groups, *(adamw.param_groups if adamw else ())], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"] if group["is_muon"] else ():
                if (gradient := parameter.grad) is not None:
                    self._move(parameter, gradient, group["lr"], group["weight_decay"])
        if self._adamw is None:
            return
        # Groups and states are others than they were, when they were loaded.
        self._adamw.param_groups = [group for group in self.param_groups if not group["is_muon"]]
        self._adamw.state = self.state
        self._adamw.step()

    def _move(self, matrix: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[matrix]
        if not state:
            state["exp_avg"] = torch.zeros_like(matrix)
        state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        ahead = whole(gradient.lerp(state["exp_avg"], MOMENTUM))  # Nesterov's
        length = 0.2 * sqrt(max(matrix.shape))
        matrix.mul_(1 - lr * weight_decay)
        matrix.sub_(placed_like(matrix, orthogonal(ahead).to(matrix.dtype)), alpha=lr * length)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U V' of U S V': singular values between about .7 and 1.2. (m, n).

    In bfloat16 as Muon's own; on a CPU in float32: few have products of bfloat16, and without them
    it takes twenty times as long.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(
        torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    )
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def share_of_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Of the highest, at step 1, 2, ... steps; open_clip's own cosine, which reaches 0 after the
    last, and after each milestone begins anew (SGDR, arXiv 1608.03983)."""
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule == "cosine":
        begun = max(one for one in (config.warmup_steps, *config.milestones) if one < step)
        end = min(one for one in (*config.milestones, steps) if one >= step)
        return (1 + cos(pi * (step - 1 - begun) / (end - begun))) / 2
    if config.schedule == "steps":
        return config.gamma ** sum(step > milestone for milestone in config.milestones)
    return 1.0


class Pull:
    """The paper's regulariser: weight times the sum of each tensor's distance to its original.

    The norm is not squared (arXiv 2310.08320, their code). Its gradient, a step of length `weight`
    towards the original (none at the original itself), is added to each tensor's own as that
    comes: a loss would have to hold all weights at once, which no process does under ZeRO-3.

    originals: by name, anywhere, the model that is pulled to. share: of a step, that one
    backward is.
    """

    def __init__(self, weight: float, originals: Mapping[str, Tensor], share: float = 1.0):
        self._weight, self._originals, self._share = weight, dict(originals), share
        self._distances: dict[str, Tensor] = {}

    def attach(self, student: nn.Module) -> None:
        """Before it is prepared: holds for one process, DDP and ZeRO."""
        for name, parameter in student.named_parameters() if self._weight else ():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._pulled, name, parameter))

    def _pulled(self, name: str, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        towards = self._away(name, parameter)
        self._distances[name] = distance = towards.norm()
        return gradient + self._share * self._weight * towards / distance.clamp(min=TINY)

    def add(self, trained: Mapping[str, nn.Parameter]) -> None:
        """To the gradients of FSDP2's parts once they are there, since its weights are others than
        those attached to; of other strategies nothing is left to do.
        """
        parts = {n: p for n, p in trained.items() if isinstance(p, DTensor) and p.grad is not None}
        if not parts:
            return
        away = {name: self._away(name, p) for name, p in parts.items()}
        squares = torch.stack([own.square().sum() for own in away.values()])
        dist.all_reduce(squares)
        self._distances = dict(zip(away, squares.sqrt(), strict=True))
        for name, parameter in parts.items():
            gradient: Any = parameter.grad
            by = self._weight / self._distances[name].clamp(min=TINY)
            gradient.to_local().add_(away[name] * by)

    def _away(self, name: str, parameter: Any) -> Tensor:
        """From the original; of FSDP2's parameters this rank's part."""
        original = self._originals[name]
        is_part = isinstance(parameter, DTensor)
        if is_part and not isinstance(original, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            original = distribute_tensor(
                original.to(parameter.device), mesh, placements, src_data_rank=None
            )
        # In the student's precision: what rounding did is not to be pulled at.
        self._originals[name] = original = original.to(parameter.device, parameter.dtype)
        difference = parameter.detach() - original
        return difference.to_local() if is_part else difference

    @property
    def distance(self) -> Tensor:
        """Weighted, of all tensors, when they were last pulled; a scalar."""
        return self._weight * torch.stack(list(self._distances.values())).sum()
