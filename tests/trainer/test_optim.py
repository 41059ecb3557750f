from __future__ import annotations

import math
from operator import itemgetter

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from torch import nn

from trainer.configuration.sections import OptimizerConfig
from trainer.optim import Pull, make_optimizer, orthogonal, share_of_rate


def rates(steps: int, **options) -> list[float]:
    config = OptimizerConfig(lr=7.0, **options)
    return [share_of_rate(step, steps, config) for step in range(1, steps + 1)]


def test_the_rate_is_constant_after_the_warm_up():
    assert rates(6, schedule="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(2, schedule="constant") == [1, 1]


def test_the_rate_falls_by_half_a_cosine():
    half = math.sqrt(0.5) / 2
    wanted = [0.5, 1, 1, 0.5 + half, 0.5, 0.5 - half]
    assert rates(6, schedule="cosine", warmup_steps=2) == pytest.approx(wanted)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (3, 10), (9, 10)])
def test_the_cosine_is_open_clips(warmup, steps):
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.0}
    optimizer = torch.optim.SGD([group], lr=0.0)
    theirs = cosine_lr(optimizer, 1.0, warmup, steps)
    wanted = [theirs(step) for step in range(steps)]
    assert rates(steps, schedule="cosine", warmup_steps=warmup) == pytest.approx(wanted)


def test_after_a_milestone_the_cosine_begins_anew():
    half = math.sqrt(0.5) / 2
    falling = [1, 0.5 + half, 0.5, 0.5 - half]
    wanted = [0.5, 1, *falling, *falling]
    assert rates(10, schedule="cosine", warmup_steps=2, milestones=[6]) == pytest.approx(wanted)


def test_no_step_is_taken_at_a_rate_of_zero():
    assert rates(1) == [1]
    assert min(rates(100, warmup_steps=10)) > 0


def test_the_rate_is_cut_after_each_milestone():
    wanted = [0.5, 1, 1, 0.1, 0.1, 0.01]
    found = rates(6, schedule="steps", warmup_steps=2, milestones=[3, 5], gamma=0.1)
    assert found == pytest.approx(wanted)


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2, bias=False))


def test_vectors_and_what_is_frozen_do_not_decay():
    model = student()
    model[0].weight.requires_grad_(False)
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-5)
    optimizer = make_optimizer(model, config)
    vectors, matrices = sorted(optimizer.param_groups, key=itemgetter("weight_decay"))
    assert [id(p) for p in matrices["params"]] == [id(model[2].weight)]
    assert {id(p) for p in vectors["params"]} == {
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias)
    }
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-5)


def test_decay_alone_shrinks_matrices_by_the_rate():
    model = student()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old * 0.95 if old.dim() == 2 else old)


def test_a_group_without_parameters_is_left_out():
    model = nn.LayerNorm(3)
    (group,) = make_optimizer(model, OptimizerConfig(lr=0.1)).param_groups
    assert len(group["params"]) == 2


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_image_tower_has_a_rate_of_its_own(kind):
    towers = nn.ModuleDict({"text": tower(), "image": tower()})
    of_images = {id(p) for p in towers["image"].parameters()}
    config = OptimizerConfig(kind=kind, lr=0.1, image_lr=0.3, weight_decay=0.5)
    groups = make_optimizer(towers, config).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(towers.parameters()))
    for group in groups:
        rates = {0.3 if id(p) in of_images else 0.1 for p in group["params"]}
        assert rates == {group["initial_lr"]} == {group["lr"]}
    plain = make_optimizer(towers, OptimizerConfig(kind=kind, lr=0.1)).param_groups
    assert {group["initial_lr"] for group in plain} == {0.1}


def block() -> nn.Module:
    wide, tall = nn.Linear(4, 8), nn.Linear(8, 4)
    return nn.Sequential(wide, nn.GELU(), tall, nn.LayerNorm(4))


def tower() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({
        "table": nn.Embedding(5, 4),
        "blocks": nn.Sequential(block(), block()),
        "out": nn.Linear(4, 3, bias=False),
    })  # fmt: skip


def with_gradients(model: nn.Module, step: int) -> nn.Module:
    torch.manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_muon_moves_matrices_of_blocks_as_torchs_does_and_all_else_as_adamw():
    own, theirs = tower(), tower()
    config = OptimizerConfig(kind="muon", lr=0.01, weight_decay=0.5)
    optimizer = make_optimizer(own, config)
    matrices = [p for p in theirs["blocks"].parameters() if p.dim() == 2]
    muon = torch.optim.Muon(
        matrices, lr=0.01, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    assert len(matrices) == 4
    for one in theirs.parameters():
        one.requires_grad_(all(one is not matrix for matrix in matrices))
    adamw = make_optimizer(theirs, OptimizerConfig(lr=0.01, weight_decay=0.5))
    assert isinstance(adamw, torch.optim.AdamW)
    for step in range(3):
        for model, optimizers in ((own, [optimizer]), (theirs, [muon, adamw])):
            with_gradients(model, step)
            for one in optimizers:
                one.step()
    for mine, wanted in zip(own.parameters(), theirs.parameters(), strict=True):
        rounded = any(wanted is one for one in matrices)  # to bfloat16; by now they moved by .03
        torch.testing.assert_close(mine, wanted, rtol=0, atol=3e-4 if rounded else 1e-6)


def test_muon_may_move_all_that_trains_but_not_nothing():
    model = tower()
    for one in model.parameters():
        one.requires_grad_(one.dim() == 2 and any(one is p for p in model["blocks"].parameters()))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    make_optimizer(with_gradients(model, 0), OptimizerConfig(kind="muon", lr=0.01)).step()
    for name, one in model.named_parameters():
        assert torch.equal(one, before[name]) != one.requires_grad, name
    model["blocks"].requires_grad_(False)
    model["out"].requires_grad_(True)
    with pytest.raises(ValueError, match="none of those train here; set optimizer.kind=adamw"):
        make_optimizer(model, OptimizerConfig(kind="muon", lr=0.01))


def test_what_is_frozen_muon_does_not_move():
    model = tower()
    model["blocks"][0].requires_grad_(False)
    groups = make_optimizer(model, OptimizerConfig(kind="muon", lr=0.1)).param_groups
    (by_muon,) = [group["params"] for group in groups if group["is_muon"]]
    assert {id(p) for p in by_muon} == {
        id(p) for p in model["blocks"][1].parameters() if p.dim() == 2
    }


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)])
def test_orthogonal_makes_all_directions_nearly_as_long(shape):
    torch.manual_seed(0)
    lengths = torch.linalg.svdvals(orthogonal(torch.randn(shape) * 1e-3).float())
    assert lengths.min() > 0.5 and lengths.max() < 1.3


def test_a_matrix_without_gradient_is_not_moved():
    model = tower()
    before = [p.detach().clone() for p in model["blocks"].parameters()]
    optimizer = make_optimizer(model, OptimizerConfig(kind="muon", lr=0.1))
    for parameter in model["blocks"].parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for now, then in zip(model["blocks"].parameters(), before, strict=True):
        torch.testing.assert_close(now, then)


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter += torch.randn_like(parameter) * i  # the first stays where it is
    return model


def attached(model: nn.Module, weight: float, share: float = 1.0) -> Pull:
    """To the model's own weights, as they are now."""
    pull = Pull(weight, {name: p.detach().clone() for name, p in model.named_parameters()}, share)
    pull.attach(model)
    return pull


def backward(model: nn.Module) -> None:
    """Of a loss whose own gradient is zero everywhere."""
    sum(0.0 * p.sum() for p in model.parameters() if p.requires_grad).backward()


def test_the_pull_is_the_weighted_sum_of_each_tensors_distance():
    model = student()
    originals = [p.detach().clone() for p in model.parameters()]
    model[1].bias.requires_grad_(False)
    pull = attached(model, 0.3)
    moved(model)
    wanted = sum(
        float(torch.linalg.vector_norm(p.detach() - q))  # not squared
        for p, q in zip(model.parameters(), originals, strict=True)
        if p.requires_grad
    )
    backward(model)
    assert pull.distance.item() == pytest.approx(0.3 * wanted, rel=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_pull_twice_as_far_is_twice_as_strong_and_its_gradient_a_unit_vector(share):
    weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    model = nn.ParameterList([weight])
    pull = attached(model, 0.5, share)
    for factor in (1, 2):
        with torch.no_grad():
            weight.copy_(torch.tensor([[1.0, 2.0]]) + factor * torch.tensor([[3.0, 4.0]]))
        weight.grad = None
        backward(model)
        assert pull.distance.item() == pytest.approx(2.5 * factor)
        torch.testing.assert_close(weight.grad, share * 0.5 * torch.tensor([[0.6, 0.8]]))


def test_at_the_original_the_pull_and_its_gradient_are_zero():
    model = student()
    pull = attached(model, 0.3)
    backward(model)
    assert pull.distance == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("distance", [1e-30, 1e-20, 1e-12, 1e-6])
def test_very_near_the_original_the_gradient_stays_finite(distance):
    weight = nn.Parameter(torch.zeros(2, 2))
    model = nn.ParameterList([weight])
    attached(model, 1.0)
    with torch.no_grad():
        weight += distance
    backward(model)
    assert weight.grad is not None and weight.grad.norm() <= 1.001


def test_without_weight_nothing_is_pulled():
    model = student()
    attached(model, 0.0)
    moved(model)
    backward(model)
    assert all((p.grad == 0).all() for p in model.parameters())
