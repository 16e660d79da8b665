"""A solver decides the same on an accelerator, where no value may be read, as on the CPU."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from layer_problems import features_matrix, moved, randn

from sibp.activations import RELU
from sibp.prox import status
from sibp.prox.kernels import disabled
from sibp.prox.operators import DenseFeatures
from sibp.prox.scalars import at_least, is_finite
from sibp.prox.solvers import coordinates, linear, nonlinear
from sibp.prox.solvers.coordinates import Direct, Span, smaller_side
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.status import Status


def solve(kind: str, side, A, R, lam):
    features = side(DenseFeatures(A))
    return (
        solve_linear(features, R, lam) if kind == "linear" else solve_nonlinear(features, R, R.relu() + 1, lam, RELU, 3)
    )


def read_nothing(monkeypatch):
    for module in (coordinates, linear, nonlinear, status):
        monkeypatch.setattr(module, "scalar", lambda tensor: tensor)


def case(name: str) -> tuple[torch.Tensor, float, Status]:
    if name == "plain":
        return randn(1, 7, 9), 0.5, Status.SOLVED
    return torch.full((1, 7, 9), math.nan, dtype=torch.float64), 0.5, Status.NONFINITE


@pytest.mark.parametrize("name", ["plain", "not finite"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("side", [Span, Direct])
def test_decisions_without_synchronisation_are_the_same(side, kind, name, monkeypatch):
    A, lam, expected = case(name)
    R = randn(1, 7, 4)
    with disabled():
        here = solve(kind, side, A, R, lam)
        assert here.stats  # evaluates the lazy statistics
        read_nothing(monkeypatch)
        there = solve(kind, side, A, R, lam)
    assert isinstance(there.finite, torch.Tensor)
    assert here.stats.status == there.stats.status == expected
    if expected == Status.NONFINITE:
        assert not here.x.any()
        assert not there.x.any()
    else:
        np.testing.assert_array_equal(moved(here), moved(there))
    for key in ("decrease", "step_length", "squared_change"):
        assert float(getattr(there.stats, key)) == pytest.approx(getattr(here.stats, key), rel=1e-12), key


@pytest.mark.parametrize("side", [Span, Direct])
def test_without_synchronisation_lam_is_raised_to_the_rounding(side, monkeypatch):
    """Equal rows, and a lam 30 times below the floor of 16 eps ||Phi^T Phi||."""
    A, R = torch.ones(1, 7, 9), randn(1, 7, 4, dtype=torch.float32)
    norm = 7 * 10.0  # of 7 equal rows of ten ones (nine inputs and the bias)
    read_nothing(monkeypatch)
    with disabled():  # an accelerator has no kernels
        solution = solve("linear", side, A, R, 0.5 * torch.finfo(torch.float32).eps * norm)
    assert solution.stats.status == Status.DAMPED
    best = float(R.double().mean(1).square().sum() * 7 / R.double().square().sum())  # the most that equal rows allow
    assert float(solution.stats.decrease) == pytest.approx(best, abs=0.02)
    X = moved(solution)
    change = torch.from_numpy(X.sum(-2, keepdims=True))  # a row of Phi is a row of ones
    assert float((R.double() + change).square().sum() / R.double().square().sum()) == pytest.approx(1 - best, abs=0.02)


@pytest.mark.parametrize("side", [Span, Direct])
def test_without_synchronisation_a_failed_factorisation_leaves_a_gradient_step(side, monkeypatch):
    A, R = randn(1, 7, 9), randn(1, 7, 4)
    failed = linear._Factor(torch.eye(1), torch.tensor(False))
    monkeypatch.setattr(linear._Factor, "of", lambda *_: failed)
    monkeypatch.setattr(linear._Factor, "minus_solve", lambda _, rhs: torch.full_like(rhs, math.nan))
    read_nothing(monkeypatch)
    with disabled():
        solution = solve("linear", side, A, R, 0.5)
    assert solution.stats.status == Status.GRADIENT
    P = features_matrix(DenseFeatures(A))[0]
    gram = P @ P.T if side is Span else P.T @ P
    gradient = P.T @ R[0].numpy()
    np.testing.assert_allclose(moved(solution)[0], -gradient / (0.5 + np.linalg.norm(gram)), rtol=1e-12)
    assert 0 < float(solution.stats.decrease) < 1


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.0, 0.5), (0.5, 0.5), (2.0, 2.0), (math.inf, math.inf), (math.nan, math.nan)]
)
def test_a_bound_is_the_same_without_synchronisation_and_preserves_nan(value, expected):
    for bounded in (at_least(0.5, value), at_least(0.5, torch.tensor(value))):
        assert float(bounded) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, True), (-1e300, True), (math.inf, False), (-math.inf, False), (math.nan, False)]
)
def test_neither_infinity_nor_nan_is_finite(value, expected):
    for flag in (is_finite(value), is_finite(torch.tensor(value, dtype=torch.float64))):
        assert bool(flag) is expected


@pytest.mark.parametrize(("rows", "held"), [(4, True), (40, False)])
def test_unread_metrics_keep_nothing_larger_than_the_weights(rows, held):
    """More rows than inputs are a convolution's positions, up to millions: their error signals must be freed."""
    R = randn(rows, 3)
    known = weakref.ref(R)
    solution = solve_linear(smaller_side(DenseFeatures(randn(rows, 9, seed=1))), R, 0.5)
    squared = float(R.square().sum())
    del R
    gc.collect()
    assert (known() is not None) == held
    assert 0 < float(solution.stats.decrease) < 1
    assert 0 < float(solution.stats.squared_change) < squared / 0.5  # lam ||dW||^2 <= f(start)
