"""Conjugate gradients over spectra that a Gram matrix cannot carry: compiled, plain, and the objective in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import ACTIVATIONS, SIDES, features_matrix, moved, objective, randn
from test_fused import needs_kernels
from test_spectra import inputs, matrix

from sibp.prox import kernels
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers import nonlinear
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.status import Solution, Status

NAMES = ["identity", "relu", "leaky_relu", "tanh"]


def ends(features: DenseFeatures, Z, T, lam: float, s: Callable, solution: Solution) -> tuple[torch.Tensor, ...]:
    """f(0) and f(displacement) of every output unit, and the squared change, in float64."""
    P, X = features_matrix(features), moved(solution)
    start, end = (objective(P, Z, T, lam, s, point) for point in (0 * X, X))
    return start, end, torch.from_numpy(X).square().sum()


problems = given(
    A=inputs(), units=st.floats(-6, 8), m=st.integers(0, 40), iterations=st.integers(1, 12), bias=st.booleans(),
    name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), near=st.sampled_from([0, 0, 2, 4, 6]),
)  # fmt: skip


def made(dtype, A, units: float, m: int, bias: bool, seed: int, near: int):
    """Features, Z, T and lam = 10^units eps ||Phi||^2; T is apart from Z, or `near` digits of it are Z's."""
    features = DenseFeatures(A.to(dtype), bias=bias)
    Z, T = (randn(len(A), m, seed=seed + k, dtype=dtype) for k in range(2))
    T = Z + T * 10.0**-near if near else T
    squared = torch.from_numpy(features_matrix(features)).square().sum().item()
    return features, Z, T, 10**units * torch.finfo(dtype).eps * (squared or 1.0)


@pytest.mark.usefixtures("both_ways")
@settings(max_examples=100, deadline=None, derandomize=True)
@problems
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_output_units_objective_rises_and_metrics_match_the_displacement(
    side, dtype, A, units, m, iterations, bias, name, seed, near
):
    """Up to the rounding of Z and T, which makes up all of a residual near eps ||T||."""
    features, Z, T, lam = made(dtype, A, units, m, bias, seed, near)
    s, torch_s = ACTIVATIONS[name]
    solution = solve_nonlinear(side(features), Z, T, lam, s, iterations)
    start, end, squared_change = ends(features, Z, T, lam, torch_s, solution)
    rounding = 4 * torch.finfo(dtype).eps * (Z.double().norm(dim=0) + T.double().norm(dim=0))
    assert (end <= start * (1 + 1e-6) + 2 * rounding * start.sqrt()).all()
    stats, total = solution.stats, float(start.sum())
    uncertain = float((rounding * start.sqrt()).sum()) / total if total else 0.0
    assert stats.status in (Status.SOLVED, Status.STALLED)
    assert 0 <= float(stats.decrease) <= 1
    assert float(stats.decrease) == pytest.approx(
        1 - float(end.sum()) / total if total else 0.0, abs=2e-3 + 2 * uncertain
    )
    assert float(stats.squared_change) == pytest.approx(float(squared_change), rel=1e-4)
    assert float(solution.change_bound) >= (1 - 1e-4) * float(squared_change)


@needs_kernels
def test_the_bound_of_a_change_holds_where_its_coefficients_are_too_small_to_be_squared():
    """The change is Phi^T x, with coefficients of 1e-23 and rows of 1e10."""
    features, Z, T, lam = made(torch.float32, torch.tensor([[-98.235], [1.8705e10]]), 0.0, 1, False, 0, 2)
    s, torch_s = ACTIVATIONS["identity"]
    solution = solve_nonlinear(Span(features), Z, T, lam, s, 1)
    _, _, squared_change = ends(features, Z, T, lam, torch_s, solution)
    assert float(solution.x.square().sum()) == 0  # in single precision
    assert 0 < float(squared_change) <= float(solution.change_bound)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["identity", "relu"])
def test_cancelling_directions_are_not_followed(name):
    """All gradients are multiples of the one row of Phi, so their difference is rounding, in any direction."""
    s, torch_s = ACTIVATIONS[name]
    for seed in range(200):
        features = DenseFeatures(randn(1, 1 + seed % 8, seed=seed, dtype=torch.float32), bias=bool(seed % 2))
        Z, T = (randn(1, 32, seed=seed + k, dtype=torch.float32) for k in (1000, 2000))
        lam = 10 ** (-1 + seed % 7 / 4) * torch.finfo(torch.float32).eps * float(features.squared_norm())
        solution = solve_nonlinear(Direct(features), Z, T, lam, s, 2 + seed % 8)
        start, end, _ = ends(features, Z, T, lam, torch_s, solution)
        rounding = 4 * torch.finfo(torch.float32).eps * (Z.abs() + T.abs()).double()
        assert (end <= start * (1 + 1e-6) + 2 * rounding * start.sqrt()).all()
        assert float(solution.stats.decrease) == pytest.approx(1 - float(end.sum() / start.sum()), abs=1e-4)


@needs_kernels
@settings(max_examples=150, deadline=None, derandomize=True)
@problems
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_compiled_iteration_equals_torchs(side, dtype, A, units, m, iterations, bias, name, seed, near):
    """Later iterations may differ where a product of two directions is rounding; tests above cover both."""
    del iterations, near
    features, Z, T, lam = made(dtype, A, units, m, bias, seed, 0)
    s, torch_s = ACTIVATIONS[name]
    compiled = solve_nonlinear(side(features), Z, T, lam, s, 1)
    with kernels.disabled():
        plain = solve_nonlinear(side(features), Z, T, lam, s, 1)
    (start, here, _), (_, there, _) = (ends(features, Z, T, lam, torch_s, one) for one in (compiled, plain))
    assert ((here - there).abs() <= 1e-4 * start).all()
    assert float(compiled.stats.decrease) == pytest.approx(float(plain.stats.decrease), abs=1e-3)
    assert compiled.stats.status == plain.stats.status


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["relu", "identity"])
def test_residuals_in_all_but_null_directions_need_double_precision(name):
    """The residual lacks Phi's strong directions, so coefficients are large and their displacement is small."""
    s, torch_s = ACTIVATIONS[name]
    for seed in range(40):
        A = matrix(18 + seed % 10, 150, 8 + seed % 10, 10.0 ** (3 + seed % 9), seed)
        A = A * torch.logspace(-3, 6, len(A), dtype=torch.float64).unsqueeze(1) if seed % 2 else A
        features = DenseFeatures(A.float())
        U, S, _ = torch.linalg.svd(torch.from_numpy(features_matrix(features)), full_matrices=False)
        strong = U[:, S[0] < 1e3 * S]
        Z, R = randn(len(A), 8, seed=seed).abs() + 1, randn(len(A), 8, seed=seed + 1)
        T = (torch_s(Z) - R + strong @ (strong.T @ R)).float()
        lam = 10.0 ** (-1 - seed % 5) * torch.finfo(torch.float32).eps * float(S[0] ** 2)
        solution = solve_nonlinear(Span(features), Z.float(), T, lam, s, 1 + seed % 8)
        start, end, _ = ends(features, Z.float(), T, lam, torch_s, solution)
        assert (end <= start * (1 + 1e-6)).all()
        assert float(solution.stats.decrease) == pytest.approx(1 - float(end.sum() / start.sum()), abs=1e-4)


@pytest.mark.parametrize(("factor", "left"), [(1.5, 1.5), (3.0, 0.75), (20.0, 1.25), (1e6, 0.0)])
@pytest.mark.parametrize("side", SIDES)
def test_displacements_whose_objective_rises_are_shortened(side, factor, left, monkeypatch: pytest.MonkeyPatch):
    """With the minimum at 1, the objective is below its start for steps up to 2; from 20 that takes a sixteenth."""
    features = DenseFeatures(randn(6, 4))
    Z, T = randn(6, 3, seed=1), randn(6, 3, seed=2)
    identity, torch_identity = ACTIVATIONS["identity"]
    minimum = moved(solve_nonlinear(side(features), Z, T, 0.5, identity, 30))
    taken = nonlinear._run_iterations

    def too_far(*arguments):
        found = taken(*arguments)
        return found._replace(x=factor * found.x, doubtful=torch.ones(()))

    monkeypatch.setattr(nonlinear, "_run_iterations", too_far)
    solution = solve_nonlinear(side(features), Z, T, 0.5, identity, 30)
    assert moved(solution) == pytest.approx(left * minimum, rel=1e-6, abs=1e-9)
    start, end, squared_change = ends(features, Z, T, 0.5, torch_identity, solution)
    assert float(solution.stats.decrease) == pytest.approx(float(1 - end.sum() / start.sum()), abs=1e-12)
    assert float(solution.stats.squared_change) == pytest.approx(float(squared_change))
    assert solution.stats.status == (Status.SOLVED if left else Status.STALLED)
