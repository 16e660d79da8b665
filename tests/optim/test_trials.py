"""Steps of a line search around the search itself: the fallback's share, buffers, warnings, copies."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP, ProxBP
from sibp.optim.proximal import ProximalOptimizer

F64 = torch.float64


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, torch.arange(20) % 3


def step(model: nn.Module, optimizer: ProximalOptimizer, *rises: float) -> None:
    """Takes a step; rises are the trials' losses over the one before, and the last one remains."""
    x, y = batch()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    left = list(rises)
    optimizer.step(evaluate=lambda: loss.item() + (left.pop(0) if len(left) > 1 else left[0]), loss=loss)


def test_the_fallback_takes_its_whole_step_unless_the_search_shortens_it():
    """After a step of a quarter the next one is expected to be half as long as asked."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    model = nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 3)).double()
    optimizer = SIBP(model, line_search=True, fallback=lambda params: torch.optim.SGD(params, lr=0.2))
    for rises, taken, share in (((1.0, 1.0, -1.0), 0.25, 0.25), ((-1.0,), 0.5, 1.0), ((1.0, -1.0), 0.5, 0.5)):
        old = [p.detach().clone() for p in norm.parameters()]
        step(model, optimizer, *rises)
        assert optimizer.search_stats()["step"] == taken
        expected = [q - share * 0.2 * p.grad for p, q in zip(norm.parameters(), old, strict=True) if p.grad is not None]
        torch.testing.assert_close([p.detach() for p in norm.parameters()], expected, rtol=1e-12, atol=1e-15)


class Counting(nn.Module):
    """Replaces its buffer in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3, dtype=F64)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + len(x)
        return self.linear(x)


def test_trials_do_not_count_in_a_buffer_that_the_forward_pass_replaces():
    model, (x, y) = Counting(), batch()
    optimizer = SIBP(model, line_search=True)
    F.cross_entropy(model(x), y).backward()
    optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y))
    assert optimizer.search_stats()["trials"] > 0
    assert float(model.seen) == 20


def dropout_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3)).double()


def no_longer_drawn(model: nn.Module) -> None:
    """A pass of another batch, which draws random numbers and is never differentiated."""
    with torch.no_grad():
        model(batch()[0])


@pytest.mark.parametrize("method", [AutoSIBP, lambda model: SIBP(model, line_search=True)], ids=["auto", "sibp"])
@pytest.mark.parametrize("copied", [False, True])
def test_trials_have_the_dropout_masks_of_the_gradient(method, copied: bool):
    """Other masks give another loss, and a gradient that says little about it. The next step has masks of its own."""
    optimizer: Any = method(dropout_net())
    if copied:
        optimizer = copy.deepcopy(optimizer)
    model, (x, y) = optimizer.model, batch()
    masked = []
    for _ in range(3):
        optimizer.zero_grad()
        no_longer_drawn(model)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        no_longer_drawn(model)
        state, losses = torch.get_rng_state(), []

        def evaluate(model=model, losses=losses) -> Tensor:
            losses.append(F.cross_entropy(model(x), y))
            return losses[-1]

        optimizer.step(evaluate=evaluate)
        assert losses[0].item() == loss.item()
        assert torch.equal(torch.get_rng_state(), state)
        masked.append(loss.item())
    assert len(set(masked)) == 3


def test_trials_of_accumulated_batches_have_their_dropout_masks():
    model, (x, y) = dropout_net(), batch()
    optimizer, parts = AutoSIBP(model), (slice(0, 10), slice(10, 20))
    model(x).sum().backward()
    optimizer.zero_grad()
    losses = [F.cross_entropy(model(x[rows]), y[rows]) for rows in parts]
    for loss in losses:
        loss.backward()
    seen: list[list[float]] = []

    def evaluate() -> float:
        seen.append([F.cross_entropy(model(x[rows]), y[rows]).item() for rows in parts])
        return sum(seen[-1])

    optimizer.step(evaluate=evaluate)
    assert seen[0] == [loss.item() for loss in losses]


def test_a_net_with_dropout_trains():
    """With other masks in the trials than in the gradient, this net stays at its initial loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 20, generator=generator)
    y = (x @ torch.randn(20, 4, generator=generator)).argmax(1)
    torch.manual_seed(0)
    hidden = [layer for n in (20, 64) for layer in (nn.Linear(n, 64), nn.ReLU(), nn.Dropout(0.5))]
    model = nn.Sequential(*hidden, nn.Linear(64, 4))
    optimizer = AutoSIBP(model)
    for rows in torch.randint(600, (60, 50), generator=generator):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step(evaluate=lambda rows=rows: F.cross_entropy(model(x[rows]), y[rows]), loss=loss)
    model.eval()
    assert F.cross_entropy(model(x), y).item() < 0.7


def test_refused_steps_are_counted_in_a_row():
    """Warnings are errors here."""
    model = mlp()
    optimizer = SIBP(model, line_search=True)
    for rise in [math.inf] * 9 + [-1.0] + [math.inf] * 9:
        step(model, optimizer, rise)
    with pytest.warns(RuntimeWarning, match="the line search refused 10 steps in a row"):
        step(model, optimizer, math.inf)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_copies_search_as_the_original_does(method, copied):
    optimizer: Any = method(mlp(), 50.0, line_search=True)
    other = copied(optimizer)
    x, y = batch()
    for one in (optimizer, other):
        for _ in range(3):
            one.zero_grad()
            F.cross_entropy(one.model(x), y).backward()
            one.step(evaluate=lambda model=one.model: F.cross_entropy(model(x), y))
    assert other.search_stats() == optimizer.search_stats()
    for p, q in zip(other.model.parameters(), optimizer.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_long_step_of_large_weights_is_no_reason_for_a_warning():
    """It is as long as the weights are, 1e4 an entry; warnings are errors here."""
    model = nn.Linear(4, 3, bias=False)
    nn.init.constant_(model.weight, 1e4)
    optimizer = ProxBP(model, lr=1e4, solver="gradient", loss_average=False)
    model(torch.ones(1, 4)).sum().backward()
    assert optimizer.solver_stats()[""]["relative_change"] == pytest.approx(1)


def test_a_gradient_step_reports_its_length():
    model, (x, y) = mlp(), batch()
    optimizer = ProxBP(model, solver="gradient", prox_weight=4.0)
    F.cross_entropy(model(x), y).backward()
    assert [stats["step_length"] for stats in optimizer.solver_stats().values()] == [0.25, 0.25]


@pytest.mark.parametrize("given", [True, False], ids=["loss given", "loss evaluated"])
@pytest.mark.parametrize("method", [AutoSIBP, lambda model: SIBP(model, line_search=True)], ids=["auto", "sibp"])
def test_a_loss_that_ignores_the_weights_is_noticed_by_the_second_step(method, given: bool):
    model = mlp()
    optimizer = method(model)
    x, y = batch()

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step(evaluate=lambda: 0.5, loss=loss if given else None)

    with pytest.warns(RuntimeWarning, match=r"evaluate returned 0\.5 at different weights"):
        train(2)
    train(2)  # warnings are errors here: it is said once


@pytest.mark.parametrize("method", [AutoSIBP, lambda model: SIBP(model, line_search=True)], ids=["auto", "sibp"])
def test_training_at_rest_is_not_taken_for_a_constant_loss(method):
    """Warnings are errors here."""
    model = mlp()
    optimizer = method(model)
    x, _ = batch()
    for _ in range(60):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step(evaluate=lambda: model(x).square().mean())


def test_losses_of_zero_in_a_row_are_not_taken_for_a_constant_loss():
    """A step lowers each batch's hinge loss to exactly 0. Warnings are errors here."""
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, -0.5)
    optimizer = SIBP(model, lr=10.0, line_search=True)
    for x in torch.eye(3).unsqueeze(1):
        optimizer.zero_grad()
        loss = F.relu(1 - model(x)).sum()
        loss.backward()
        assert loss.item() == 1.5
        optimizer.step(evaluate=lambda x=x: F.relu(1 - model(x)).sum(), loss=loss)
        assert F.relu(1 - model(x)).item() == 0


def test_a_constant_loss_without_proximal_weights_is_no_error():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model[0].requires_grad_(False)
    optimizer = SIBP(model, line_search=True)
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step(evaluate=lambda: 0.5)
