"""Deciding without looking: what a solver does on an accelerator, where no number may be read, is what it does here."""

import gc
import math
import weakref

import pytest
import torch
from layer_problems import randn

from sibp.prox import coordinates, linear, nonlinear
from sibp.prox.activations import RELU
from sibp.prox.compiled import disabled
from sibp.prox.coordinates import Direct, Features, Span, smaller_side
from sibp.prox.linear import solve_linear
from sibp.prox.nonlinear import solve_nonlinear
from sibp.prox.numbers import at_least, is_finite
from sibp.prox.status import Status


def solve(kind: str, side, A, R, lam):
    features = side(Features(A))
    return (
        solve_linear(features, R, lam) if kind == "linear" else solve_nonlinear(features, R, R.relu() + 1, lam, RELU, 3)
    )


def case(name: str) -> tuple[torch.Tensor, float, Status]:
    if name == "plain":
        return randn(1, 7, 9), 0.5, Status.SOLVED
    if name == "damped":
        return 1e9 * torch.ones(1, 7, 9, dtype=torch.float64), 1e-3, Status.DAMPED
    return torch.full((1, 7, 9), math.nan, dtype=torch.float64), 0.5, Status.NONFINITE


@pytest.mark.parametrize("name", ["plain", "damped", "not finite"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("side", [Span, Direct])
def test_numbers_that_are_never_read_decide_the_same(side, kind, name, monkeypatch):
    A, lam, status = case(name)
    R = randn(1, 7, 4)
    if kind == "nonlinear" and name == "damped":
        pytest.skip("conjugate gradients never damp")
    with disabled():
        here = solve(kind, side, A, R, lam)
        assert here.stats  # worked out when first asked for: now
        for module in (coordinates, linear, nonlinear):
            monkeypatch.setattr(module, "number", lambda tensor: tensor)
        there = solve(kind, side, A, R, lam)
    assert isinstance(there.finite, torch.Tensor)
    assert here.stats.status == there.stats.status == status
    assert torch.equal(here.x, there.x)
    for key in ("decrease", "step_length", "squared_change"):
        assert float(getattr(there.stats, key)) == pytest.approx(getattr(here.stats, key), rel=1e-12), key


@pytest.mark.parametrize(
    ("figure", "expected"), [(-1.0, 0.5), (0.5, 0.5), (2.0, 2.0), (math.inf, math.inf), (math.nan, math.nan)]
)
def test_a_bound_is_the_same_read_or_not_and_hides_no_nan(figure, expected):
    for bounded in (at_least(0.5, figure), at_least(0.5, torch.tensor(figure))):
        assert float(bounded) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("figure", "expected"), [(0.0, True), (-1e300, True), (math.inf, False), (-math.inf, False), (math.nan, False)]
)
def test_neither_infinity_nor_nan_is_finite(figure, expected):
    for flag in (is_finite(figure), is_finite(torch.tensor(figure, dtype=torch.float64))):
        assert bool(flag) is expected


@pytest.mark.parametrize(("rows", "held"), [(4, True), (40, False)])
def test_figures_nobody_asked_for_hold_on_to_nothing_larger_than_the_weights(rows, held):
    """Rows beyond the inputs are a convolution's positions, by the million: their differences have to go."""
    R = randn(rows, 3)
    known = weakref.ref(R)
    solution = solve_linear(smaller_side(Features(randn(rows, 9, seed=1))), R, 0.5)
    squared = float(R.square().sum())
    del R
    gc.collect()
    assert (known() is not None) == held
    assert 0 < float(solution.stats.decrease) < 1
    assert 0 < float(solution.stats.squared_change) < squared / 0.5  # lam ||dW||^2 <= f(start)
