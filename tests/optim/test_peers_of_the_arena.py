"""Rules that the papers of aProx, adaptive K-FAC and Schedule-Free state."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp.experiment.compose import compose
from sibp.experiment.optimizers import build_optimizer
from sibp.optim.aprox import AProx
from sibp.optim.kfac import KFAC
from sibp.optim.kfac_adaptive import EVERY, OMEGA, AdaptiveKFAC

F64 = torch.float64


@pytest.mark.parametrize(("lr", "end"), [(0.1, 2.7), (10.0, 1.5)])
def test_a_truncated_step_ends_where_the_tangent_reaches_the_bound(lr, end):
    """Half of x^2 at 3: f = 4.5, g = 3. With eta = 0.1, 3 - 0.3; the tangent is 0 at 3 - 4.5 / 3 = 1.5."""
    x = nn.Parameter(torch.tensor([3.0], dtype=F64))
    optimizer = AProx([x], lr)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (x**2).sum() / 2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.5
    assert x.item() == pytest.approx(end, rel=1e-12)


def test_a_truncated_step_needs_the_loss_and_skips_non_finite_values():
    x = nn.Parameter(torch.ones(2, dtype=F64))
    optimizer = AProx([x], 1.0)
    with pytest.raises(RuntimeError, match="AProx needs the loss of the batch"):
        optimizer.step()
    x.grad = torch.tensor([math.inf, 1.0], dtype=F64)
    optimizer.step(lambda: torch.tensor(1.0))
    assert x.tolist() == [1.0, 1.0]


def problem() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).to(F64)
    return model, torch.randn(20, 5, dtype=F64), torch.randint(3, (20,))


def one_step(
    optimizer: KFAC, model: nn.Module, x: torch.Tensor, y: torch.Tensor, **looks: object
) -> list[torch.Tensor]:
    """By how much every parameter moves."""
    torch.manual_seed(1)  # for the sampled labels
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step(**({"evaluate": lambda: F.cross_entropy(model(x), y), "loss": loss.detach()} if looks else {}))
    return [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]


@pytest.mark.parametrize("clip", [1e-6, 1e6])
def test_a_clipped_step_is_kfacs_shortened_to_the_allowed_divergence(clip):
    model, x, y = problem()
    twin = copy.deepcopy(model)
    whole = one_step(KFAC(model, lr=0.3, damping=0.1), model, x, y)
    clipped = one_step(AdaptiveKFAC(twin, lr=0.3, damping=0.1, clip=clip), twin, x, y)
    fresh, x, y = problem()
    gradients = torch.autograd.grad(F.cross_entropy(fresh(x), y), list(fresh.parameters()))
    slope = -sum((g * d).sum() for g, d in zip(gradients, whole, strict=True)).item()
    nu = min(1.0, math.sqrt(clip / (0.3 * slope)))
    assert (nu < 1) == (clip < 1)
    for mine, theirs in zip(clipped, whole, strict=True):
        torch.testing.assert_close(mine, nu * theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("fall", "factor"), [(0.9, OMEGA), (0.5, 1.0), (0.1, 1 / OMEGA), (-1.0, 1 / OMEGA)])
def test_damping_follows_the_ratio_of_actual_to_predicted_decrease(fall, factor):
    model, _, _ = problem()
    optimizer = AdaptiveKFAC(model, damping=0.5)
    optimizer._adapt(fall, 1.0)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(0.5 * factor)


def test_the_loss_is_evaluated_again_only_on_every_fifth_step():
    """So small a step keeps its promise to first order, so that the damping falls."""
    model, x, y = problem()
    optimizer = AdaptiveKFAC(model, lr=1e-4, damping=0.5, clip=1.0)
    for step in range(1, 2 * EVERY + 1):
        one_step(optimizer, model, x, y, looks=True)
        assert optimizer.param_groups[0]["damping"] == pytest.approx(0.5 * OMEGA ** (step // EVERY))


def test_schedule_free_evaluates_the_average_but_not_for_gradients():
    model, x, y = problem()
    optimizer = build_optimizer(compose(["optimizer=schedule_free"])["optimizer"] | {"lr": 0.1}, model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    weight = next(model.parameters())
    between = weight.detach().clone()
    z = optimizer.state[weight]["z"].clone()
    model.eval()
    model(x)
    average = weight.detach().clone()
    torch.testing.assert_close(between, 0.1 * z + 0.9 * average)  # y = (1 - beta) z + beta x
    model.train()
    model(x)
    torch.testing.assert_close(weight.detach(), between)
    copy.deepcopy(model)(x)  # the copy's forward pass moves nothing
    torch.testing.assert_close(weight.detach(), between)
    model.eval()
    model(x)
    model.train()
    optimizer.step(closure)  # as after an evaluation, during which the weights were at the average
    assert (weight.detach() != between).any()
