"""Rules that the papers of aProx, adaptive K-FAC, Schedule-Free, Prodigy and the stochastic line search state."""

import copy
import math
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp.experiment.compose import compose
from sibp.experiment.optimizers import build_optimizer
from sibp.optim.aprox import AProx
from sibp.optim.kfac import KFAC
from sibp.optim.kfac_adaptive import DAMPING_FACTOR, EVERY, AdaptiveKFAC
from sibp.optim.sls import LineSearchSGD
from sibp.runs.errors import UserError

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


@pytest.mark.parametrize(
    ("fall", "factor"), [(0.9, DAMPING_FACTOR), (0.5, 1.0), (0.1, 1 / DAMPING_FACTOR), (-1.0, 1 / DAMPING_FACTOR)]
)
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
        assert optimizer.param_groups[0]["damping"] == pytest.approx(0.5 * DAMPING_FACTOR ** (step // EVERY))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_clipped_kfac_takes_the_same_step(copied):
    model, x, y = problem()
    optimizer = AdaptiveKFAC(model, lr=0.3, damping=0.1, clip=1e-6)
    twin, other = copied((model, optimizer))
    expected, found = one_step(optimizer, model, x, y), one_step(other, twin, x, y)
    assert all(moved.any() for moved in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


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


def line_search(start: float = 3.0, **settings: float) -> tuple[nn.Linear, LineSearchSGD]:
    """Half of w^2, whose slope is w: Armijo's condition holds up to a length of 2 (1 - c)."""
    model = nn.Linear(1, 1, bias=False).to(F64)
    model.weight.data.fill_(start)
    return model, LineSearchSGD(model, **settings)


def half_square(model: nn.Linear) -> torch.Tensor:
    return model(torch.ones(1, 1, dtype=F64)).square().sum() / 2


def searched(model: nn.Linear, optimizer: LineSearchSGD) -> None:
    optimizer.zero_grad()
    half_square(model).backward()
    optimizer.step(evaluate=lambda: half_square(model))


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"length": 1.5, "growth": 1.0}, 1.5),
        ({"length": 1.5, "growth": 1.1}, 1.65),
        ({"length": 4.0, "growth": 1.0}, 4.0 * 0.9**8),
        ({"length": 4.0, "growth": 1.0, "shrink": 0.5}, 1.0),
        ({"length": 4.0, "growth": 1.0, "decrease": 0.5}, 4.0 * 0.9**14),
        ({"length": 4.0, "lr": 0.3}, 0.3),
    ],
)
def test_a_line_search_takes_the_first_length_by_which_the_loss_falls_enough(settings, length):
    model, optimizer = line_search(**settings)
    assert length <= 2 * (1 - settings.get("decrease", 0.1))
    searched(model, optimizer)
    assert model.weight.item() == pytest.approx(3.0 * (1 - length), rel=1e-9)
    assert optimizer.param_groups[0]["length"] == pytest.approx(length)  # where the next step begins
    kept = copy.deepcopy(optimizer.state_dict())
    _, other = line_search()
    other.load_state_dict(kept)
    assert other.param_groups[0]["length"] == optimizer.param_groups[0]["length"]


def test_a_line_search_leaves_the_weights_if_no_length_helps_or_nothing_is_known():
    model, optimizer = line_search()
    with pytest.raises(RuntimeError, match="needs the loss of the batch"):
        optimizer.step()
    optimizer.zero_grad()
    half_square(model).backward()
    optimizer.step(evaluate=lambda: math.inf, loss=1.0)
    assert model.weight.item() == 3.0
    optimizer.step(evaluate=lambda: half_square(model), loss=math.nan)
    assert model.weight.item() == 3.0
    assert model.weight.grad is not None
    model.weight.grad.fill_(math.inf)
    optimizer.step(evaluate=lambda: half_square(model))
    assert model.weight.item() == 3.0


def test_a_line_search_takes_a_closure_instead():
    model, optimizer = line_search(length=1.5, growth=1.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = half_square(model)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.5
    assert model.weight.item() == pytest.approx(-1.5)


@pytest.mark.parametrize(("name", "package"), [("prodigy", "pytorch_optimizer"), ("schedule_free", "schedulefree")])
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install"):
        build_optimizer(compose([f"optimizer={name}"])["optimizer"], problem()[0])


def test_prodigy_steps_by_its_estimate_of_the_distance():
    """The first estimate is 1e-6; the means of one gradient g are .1 g and .001 g^2."""
    model, x, y = problem()
    optimizer = build_optimizer(compose(["optimizer=prodigy"])["optimizer"], model)
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.grad is not None
        moved = p.grad.abs() > 1e-3  # so that the 1e-8 added to the root is negligible
        torch.testing.assert_close((p - old)[moved], -1e-6 * 0.1 / 0.001**0.5 * p.grad[moved].sign(), rtol=1e-3, atol=0)
