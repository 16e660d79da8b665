"""Solves beyond the precision: a finite answer that does not raise the objective, with the right status."""

import math

import numpy as np
import pytest
import torch
from layer_problems import ACTIVATIONS, SIDES, features_matrix, moved, objective, randn
from mlp_sweeps import batch, mlp, step
from torch import nn

from sibp import SIBP, ProxBP
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers import linear
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.status import Status

pytestmark = [
    pytest.mark.usefixtures("both_ways"),
    pytest.mark.filterwarnings("ignore:layer .* Lower lr:RuntimeWarning"),  # steps that must fail
]


def inputs(kind: str, N: int, n: int, seed: int) -> torch.Tensor:
    """Float32 inputs of size one: random, dependent, or nearly so."""
    A = randn(1, N, n, seed=seed, dtype=torch.float32)
    if kind == "relu":
        A = A.relu()
    elif kind == "low rank":
        A = A[..., :3] @ randn(1, 3, n, seed=seed + 1, dtype=torch.float32)
    elif kind == "repeated":
        A = A[:, torch.arange(N) % 5]
    elif kind == "nearly equal":
        A = 1 + 1e-3 * A
    elif kind == "unequal scales":
        A = A * torch.logspace(-6, 0, n)
    return A


KINDS = ["random", "relu", "low rank", "repeated", "nearly equal", "unequal scales"]
SHAPES = [(50, 200), (120, 120), (200, 50)]


@pytest.mark.parametrize("lam", [1e-3, 1e-6])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_cg_stays_finite_and_does_not_increase_the_objective(name, kind, side, lam):
    s, torch_s = ACTIVATIONS[name]
    for N, n in SHAPES[::2]:
        features = DenseFeatures(1e3 * inputs(kind, N, n, 0))
        Z = randn(1, N, 10, seed=1, dtype=torch.float32)
        T = torch_s(Z) - 10 * randn(1, N, 10, seed=2, dtype=torch.float32)
        coordinates = side(features)
        solution = solve_nonlinear(coordinates, Z, T, lam, s, 10)
        assert solution.x.isfinite().all()
        assert solution.stats.status in (Status.SOLVED, Status.STALLED)
        X, P = moved(solution), features_matrix(features)
        start, end = (objective(P, Z, T, lam, torch_s, point).sum().item() for point in (0 * X, X))
        assert end <= 1.01 * start


def linear_ends(features, R, lam, X):
    """f(0) and f(X), in float64, from the displacement."""
    P = features_matrix(features)
    return (objective(P, R, 0 * R, lam, lambda z: z, point).sum().item() for point in (0 * X, X))


@pytest.mark.parametrize("side", SIDES)
def test_a_gradient_step_is_taken_and_reported_if_no_factorisation_succeeds(side, monkeypatch):
    monkeypatch.setattr(linear, "_ATTEMPTS", 0)
    features = DenseFeatures(1e3 * inputs("nearly equal", 60, 60, 0))
    R = 1 + randn(1, 60, 4, dtype=torch.float32)
    coordinates = side(features)
    solution = solve_linear(coordinates, R, 1e-6)
    assert solution.stats.status == Status.GRADIENT
    X, P = moved(solution), features_matrix(features)
    start, end = linear_ends(features, R, 1e-6, X)
    assert end < start
    assert float(solution.stats.decrease) == pytest.approx(1 - end / start, rel=1e-3)
    assert float(solution.stats.squared_change) == pytest.approx(np.square(X).sum(), rel=1e-3)
    step_length = 1 / np.linalg.norm(P[0] @ P[0].T)
    expected = -step_length * np.swapaxes(P, -1, -2) @ R.double().numpy()
    np.testing.assert_allclose(X, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("side", "A", "R"),
    [
        (Span, [[1.0], [1.0]], [[2e14], [-1e14]]),
        (Span, [[1e25, 2e25]], [[1.0]]),
        (Direct, [[1e25], [2e25]], [[1.0], [3.0]]),
    ],
)
def test_squares_that_overflow_single_precision_are_computed_in_double(side, A, R):
    features = DenseFeatures(torch.tensor([A]), bias=False)
    residual, lam = torch.tensor([R]), 1e-9
    solution = solve_linear(side(features), residual, lam)
    start, end = linear_ends(features, residual, lam, moved(solution))
    assert end < 0.95 * start
    assert float(solution.stats.decrease) == pytest.approx(1 - end / start, rel=1e-3)


@pytest.mark.parametrize("side", SIDES)
def test_a_displacement_whose_square_overflows_is_not_taken(side):
    features = DenseFeatures(torch.tensor([[[1.0, 0.0], [0.0, 1e-4]]]), bias=False)
    solution = solve_linear(side(features), torch.full((1, 2, 1), 1e17), 1e-9)
    assert solution.stats.status == Status.NONFINITE
    assert not moved(solution).any()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("dtype", "huge"), [(torch.float32, 1e30), (torch.float64, 1e200)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("where", ["A", "R"])
def test_nan_and_overflow_change_nothing(where, bad, dtype, huge, side):
    A, R = randn(2, 6, 8, dtype=dtype), randn(2, 6, 4, dtype=dtype)
    bad = bad or huge
    {"A": A, "R": R}[where][1, 2, 3] = bad
    coordinates = side(DenseFeatures(A))
    Z = randn(2, 6, 4, seed=3, dtype=dtype)
    solutions = [
        solve_linear(coordinates, R, 1.0),
        *(solve_nonlinear(coordinates, Z, Z - R, 1.0, ACTIVATIONS[name][0], 3) for name in ("identity", "gelu")),
    ]
    if (where, bad, dtype) == ("A", 1e30, torch.float32):  # the closed form falls back to float64
        closed, *solutions = solutions
        start, end = linear_ends(coordinates.features, R, 1.0, moved(closed))
        assert end < start
    for solution in solutions:
        assert solution.stats.status == Status.NONFINITE
        assert not solution.x.any()
        values = (solution.stats.decrease, solution.stats.squared_change, solution.stats.step_length)
        assert all(math.isfinite(value) for value in values)


def test_a_stalled_iteration_is_reported():
    """GELU far to the left: the slope is almost 0, so the Gauss-Newton step is far too long."""
    features = DenseFeatures(torch.ones(1, 1, 1, dtype=torch.float64), bias=False)
    Z, T = torch.full((1, 1, 1), -4.0, dtype=torch.float64), torch.full((1, 1, 1), -0.1, dtype=torch.float64)
    solution = solve_nonlinear(Span(features), Z, T, 1e-9, ACTIVATIONS["gelu"][0], 1)
    assert solution.stats.status == Status.STALLED
    assert not solution.x.any()


def test_every_status_has_a_sentence():
    assert [s.value for s in Status] == [0, 1, 2, 3, 4]
    assert sorted(Status) == [Status.SOLVED, Status.DAMPED, Status.STALLED, Status.GRADIENT, Status.NONFINITE]
    assert all(s.sentence.endswith(".") for s in Status)
    assert len({s.sentence for s in Status}) == len(Status)


@pytest.mark.parametrize("lr", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [1e3, 1e6])
@pytest.mark.parametrize("lam", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("method", "solver"), [(SIBP, "cg:5"), (SIBP, "exact"), (SIBP, "paper"), (ProxBP, "exact"), (ProxBP, "cg:3")]
)
def test_training_on_extreme_values_never_raises(method, solver, lam, size, lr):
    model = mlp(30, 20, 20, 5).float()
    optimizer = method(model, lr=lr, prox_weight=lam, solver=solver)
    for k in range(3):
        x, y = batch(40, 30, 5, seed=k)
        x[20:] = x[:20]
        step(model, optimizer, (size * x).float(), y)
        assert all(p.isfinite().all() for p in model.parameters())
        assert all(layer["status"] in set(Status) for layer in optimizer.solver_stats().values())
        assert np.isfinite([layer["decrease"] for layer in optimizer.solver_stats().values()]).all()


def test_an_unsolvable_layer_does_not_affect_those_below():
    """Inputs that overflow in the middle of a net: every weight stays finite."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.fill_(1e200)
        model[2].weight.fill_(1e-200)
    for solver in ("cg:5", "exact"):
        optimizer = SIBP(model, lr=0.5, prox_weight=1.0, solver=solver)
        step(model, optimizer, torch.ones(6, 4, dtype=torch.float64), torch.arange(6) % 3)
        assert all(p.isfinite().all() for p in model.parameters())
        assert optimizer.solver_stats()["2"]["status"] == Status.NONFINITE
