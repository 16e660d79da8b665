"""What AutoSIBP carries from step to step: the length, the trust in it, and what trust is learned from."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import AutoSIBP
from sibp.optim import sibp_auto, trust

F64 = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def batch(seed: int, rows: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=F64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Taken(NamedTuple):
    """One step: the gradient where it starts, the displacement, that of every trial, and `search_stats`."""

    gradient: Tensor
    moved: Tensor
    trials: list[Tensor]
    stats: dict[str, float]


def step(model: nn.Module, optimizer: AutoSIBP, seed: int, rows: int = 20, losses: tuple[float, ...] = ()) -> Taken:
    """Takes a step; the k-th trial adds losses[k] to the loss before the step instead of finding its own."""
    (x, y), old, trials = batch(seed, rows), flat(model), []
    with optimizer.paused():
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()

    def evaluate() -> Tensor | float:
        trials.append(flat(model) - old)
        return loss.item() + losses[len(trials) - 1] if len(trials) <= len(losses) else F.cross_entropy(model(x), y)

    optimizer.step(evaluate=evaluate, loss=loss)
    gradient = torch.cat([g.flatten() for g in gradients])
    return Taken(gradient, flat(model) - old, trials, optimizer.search_stats())


class Slopes(NamedTuple):
    """The arguments of `updated_trust`."""

    trust: float
    fresh: float
    expected: float
    mean_expected: float


@pytest.fixture
def slopes(monkeypatch) -> list[Slopes]:
    """Those that trust is learned from, in turn."""
    seen: list[Slopes] = []
    plain = trust.updated_trust

    def updated_trust(share: float, fresh: float, expected: float, mean_expected: float) -> float:
        seen.append(Slopes(share, fresh, expected, mean_expected))
        return plain(share, fresh, expected, mean_expected)

    monkeypatch.setattr(trust, "updated_trust", updated_trust)
    return seen


@pytest.mark.parametrize("lr", [10.0, 1000.0])
def test_trust_compares_slopes_of_the_next_batch_along_the_last_step_and_a_new_one_as_long(slopes, lr: float):
    model = net()
    optimizer = AutoSIBP(model, lr)
    taken = [step(model, optimizer, seed) for seed in range(4)]
    assert len(slopes) == 1
    now, last = taken[3], taken[2]
    assert slopes[0].fresh == pytest.approx(float(now.gradient @ last.moved), rel=1e-9)
    whole = float(now.gradient @ now.moved) / now.stats["step"]
    assert slopes[0].expected == pytest.approx(whole * last.stats["step"], rel=1e-9)


def test_slopes_are_compared_with_a_running_mean_of_what_was_expected(slopes):
    model = net()
    optimizer = AutoSIBP(model)
    for seed in range(13):
        step(model, optimizer, seed)
    assert len(slopes) == 4
    mean_expected = -slopes[0].expected
    for one in slopes:
        mean_expected = 0.9 * mean_expected - 0.1 * one.expected
        assert one.expected < 0
        assert one.mean_expected == pytest.approx(mean_expected, rel=1e-9)


def test_trust_looks_back_at_the_step_that_was_taken_not_at_a_rejected_trial(slopes, monkeypatch):
    """At 8 rows the first step aims at half of the optimum; where that is rejected, the whole one is taken."""
    monkeypatch.setattr(sibp_auto, "MEASURE_EVERY", 1)
    model = net()
    optimizer = AutoSIBP(model, lr=1e-3)
    loss = F.cross_entropy(model(batch(0, 8)[0]), batch(0, 8)[1]).item()
    last = step(model, optimizer, 0, rows=8, losses=(-1e-3 * loss, 1.0))
    assert last.stats["step"] == 1
    torch.testing.assert_close(last.trials, [last.moved, last.moved / 2])
    now = step(model, optimizer, 1, rows=8)
    assert slopes[-1].fresh == pytest.approx(float(now.gradient @ last.moved), rel=1e-9)


def test_a_reused_length_that_is_rejected_is_measured_again_in_the_next_step():
    for losses, measured in (((), False), ((1.0,), True)):
        model = net()
        optimizer = AutoSIBP(model)
        step(model, optimizer, 0)
        reused = step(model, optimizer, 1, losses=losses)
        assert math.isnan(reused.stats["predicted_decrease"])
        assert (reused.stats["status"] == 1) == measured
        assert math.isfinite(step(model, optimizer, 2).stats["predicted_decrease"]) == measured


def test_a_measurement_begins_at_twice_the_last_optimum():
    model = net()
    optimizer = AutoSIBP(model, lr=1e3)
    for seed in range(3):
        reach = step(model, optimizer, seed).stats["reach"]
    found = step(model, optimizer, 3)
    first = found.stats["step"] * float(found.trials[0] @ found.moved / found.moved.square().sum())
    assert 0 < 2 * reach / 1e3 < 1
    assert first == pytest.approx(2 * reach / 1e3, rel=1e-9)


def test_only_the_second_step_is_limited_by_its_batch_size():
    model = net()
    optimizer = AutoSIBP(model)
    trust = [step(model, optimizer, seed, rows).stats["trust"] for seed, rows in enumerate((100, 100, 4))]
    assert trust == [1, 1, 1]
