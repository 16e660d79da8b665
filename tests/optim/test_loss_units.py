"""AutoSIBP does not depend on the unit of the loss: `lr` counts in Polyak's steps where they are out of proportion."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import AutoSIBP

ORDINARY = 2.5  # Polyak's step that `lr` is meant for, as documented
FACTOR = 30.0  # up to which it is ordinary
LR = 10.0


def unit(optimizer: AutoSIBP) -> float:
    """The unit of lr in the optimizer's state."""
    return next(state["search_unit"] for state in optimizer.state.values() if "search_unit" in state)


def polyak(net: nn.Module, x: Tensor, y: Tensor, scale: float) -> float:
    """Polyak's step on the outputs, from autograd: the mean loss over the mean square error signal of a sample."""
    outputs = net(x)
    losses = scale * F.cross_entropy(outputs, y, reduction="none")
    (D,) = torch.autograd.grad(losses.sum(), outputs)
    return (losses.mean() / D.square().flatten(1).sum(1).mean()).item()


def one_step(scale: float, **options: Any) -> tuple[AutoSIBP, float]:
    """An optimizer after its first step, and Polyak's step before it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    reduction = "mean" if options.get("loss_average", True) else "sum"
    optimizer, expected = AutoSIBP(net, lr=LR, **options), polyak(net, x, y, scale)

    def evaluate() -> Tensor:
        return scale * F.cross_entropy(net(x), y, reduction=reduction)

    evaluate().backward()
    optimizer.step(evaluate=evaluate)
    return optimizer, expected


@pytest.mark.parametrize("options", [{}, {"loss_average": False}])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e2, 1e6])
def test_the_unit_is_polyaks_step(scale, options):
    optimizer, expected = one_step(scale, **options)
    assert unit(optimizer) == pytest.approx(expected / ORDINARY, rel=1e-9)


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_an_ordinary_loss_leaves_lr_as_it_is(share):
    """On both sides of both bounds."""
    _, whole = one_step(1.0)
    for bound in (1 / FACTOR, FACTOR):
        optimizer, expected = one_step(share * whole / ORDINARY / bound)
        inside = 1 / FACTOR <= expected / ORDINARY <= FACTOR
        assert inside == ((share < 1) == (bound < 1))
        assert (unit(optimizer) == 1.0) == inside


@pytest.mark.parametrize("loss", [0.0, -3.0])
def test_a_loss_that_is_not_positive_has_no_polyak_step(loss):
    net = nn.Linear(4, 2)
    optimizer, x = AutoSIBP(net), torch.randn(10, 4)
    (1e-9 * (net(x).sum(1).mean() - net(x).sum(1).mean().detach()) + loss).backward()
    optimizer.step(evaluate=lambda: 1e-9 * net(x).sum(1).mean(), loss=loss)
    assert unit(optimizer) == 1.0


def test_several_outputs_share_their_error_signals():
    """Two heads of the same loss have the step of one head with the outputs of both."""
    torch.manual_seed(0)
    left, right = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()
    net = nn.ModuleList([left, right])
    x, scale = torch.randn(40, 6, dtype=torch.float64), 1e-4

    def evaluate() -> Tensor:
        return scale * torch.cat([left(x), right(x)], 1).square().sum(1).mean()

    Z = torch.cat([left(x), right(x)], 1).detach()
    expected = (scale * Z.square().sum(1).mean() / (2 * scale * Z).square().sum(1).mean()).item()
    optimizer = AutoSIBP(net)
    evaluate().backward()
    optimizer.step(evaluate=evaluate)
    assert unit(optimizer) == pytest.approx(expected / ORDINARY, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_a_net_trains_whatever_the_unit_of_its_loss(scale):
    """With `lr` in fixed units, these end at .99, .72, .01, 1.0 and more of the first loss."""
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = images.float() / 16
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = AutoSIBP(net)
    for rows in torch.randperm(len(images)).repeat(2).split(100):

        def evaluate(rows: Tensor = rows) -> Tensor:
            return scale * F.cross_entropy(net(images[rows]), labels[rows])

        optimizer.zero_grad()
        evaluate().backward()
        optimizer.step(evaluate=evaluate)
    assert F.cross_entropy(net(images), labels) < 0.1 * math.log(10)


def farthest_trial(scale: float) -> float:
    """How far the first step's trials move the weights."""
    torch.manual_seed(0)
    net = nn.Linear(6, 3).double()
    start, tried = net.weight.detach().clone(), []
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))

    def evaluate() -> Tensor:
        tried.append((net.weight.detach() - start).norm().item())
        return scale * F.cross_entropy(net(x), y)

    optimizer = AutoSIBP(net, lr=LR)
    evaluate().backward()
    optimizer.step(evaluate=evaluate)
    return max(tried)


def test_the_first_step_of_a_large_loss_tries_no_longer_lengths_than_that_of_an_ordinary_one():
    """Error signals a million times as large would otherwise be tried at full length."""
    assert 0 < farthest_trial(1e6) < 4 * farthest_trial(1.0)


def test_a_longer_unit_is_used_from_the_second_step_on():
    """The second step is again one that measures, and its length is bounded by lr times the unit."""
    optimizer, expected = one_step(1e-6)
    assert optimizer.search_stats()["step"] <= 1
    assert optimizer.search_stats()["reach"] == pytest.approx(LR * expected / ORDINARY, rel=1e-9)


def test_the_unit_is_kept_by_state_dict():
    optimizer, _ = one_step(1e6)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    restored = AutoSIBP(net)
    restored.load_state_dict(optimizer.state_dict())
    assert unit(restored) == unit(optimizer) < 1
