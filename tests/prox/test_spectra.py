"""The closed form for spectra beyond a Gram matrix's precision, against the singular values of Phi in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import SIDES, features_matrix, moved, randn

from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Span
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.status import Status

RESOLVED = 16.0  # lam / (eps ||Phi^T Phi||) from which the answer must be optimal


def matrix(rows: int, columns: int, rank: int, gap: float, seed: int) -> torch.Tensor:
    """(rows, columns) in float64, with singular values falling from 1 to 1/gap."""
    Q = torch.linalg.qr(randn(rows, rank, seed=seed))[0]
    P = torch.linalg.qr(randn(columns, rank, seed=seed + 1))[0]
    return Q @ torch.diag(torch.logspace(0, -math.log10(gap), rank, dtype=torch.float64)) @ P.T


@st.composite
def inputs(draw) -> torch.Tensor:
    """A layer's inputs: zero, of any rank and scale, repeated, positive, or with rows of very different norms."""
    N, n = draw(st.integers(0, 30)), draw(st.integers(0, 30))
    rank, gap = draw(st.integers(0, min(N, n))), 10 ** draw(st.floats(0, 12))
    A = matrix(N, n, rank, gap, draw(st.integers(0, 10**6))) * 10 ** draw(st.floats(-3, 6))
    kind = draw(st.sampled_from(["plain", "repeated", "positive", "unequal rows"]))
    if kind == "repeated":
        return A[torch.arange(N) % max(1, N // 3)]
    if kind == "positive":
        return A.abs()
    return A * torch.logspace(-3, 6, N, dtype=torch.float64).unsqueeze(1) if kind == "unequal rows" else A


def spectrum(features: DenseFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    """Left singular vectors and singular values of Phi, in float64."""
    U, S, _ = torch.linalg.svd(torch.from_numpy(features_matrix(features)), full_matrices=False)
    return U, S


@settings(max_examples=150, deadline=None, derandomize=True)
@given(A=inputs(), units=st.floats(-6, 8), m=st.integers(0, 12), fits=st.booleans(), bias=st.booleans(), data=st.data())
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_solution_is_a_minimum_and_its_metrics_are_accurate(side, dtype, A, units, m, fits, bias, data):
    features = DenseFeatures(A.to(dtype), bias=bias)
    U, S = spectrum(features)
    R = randn(len(A), m, seed=data.draw(st.integers(0, 10**6)))
    if not fits:  # almost none of the residual lies in the span of Phi
        R = R - (1 - 1e-9) * U @ (U.T @ R)
    R = R.to(dtype)
    lam = 10**units * torch.finfo(dtype).eps * (float(S[:1].square().sum()) or 1.0)
    start, inside = float(R.double().square().sum()), (U.T @ R.double()).square().sum(1)
    best = start - float((S**2 / (S**2 + lam) * inside).sum())

    solution = solve_linear(side(features), R, lam)

    P, X = torch.from_numpy(features_matrix(features)), torch.from_numpy(moved(solution))
    end = float((R.double() + P @ X).square().sum() + lam * X.square().sum())
    assert end <= start * (1 + 1e-6)
    if units >= math.log10(RESOLVED):
        assert end - best <= 0.02 * start
        assert solution.stats.status == Status.SOLVED
    assert 0 <= float(solution.stats.decrease) <= 1
    assert float(solution.stats.decrease) == pytest.approx(1 - end / start if start else 0.0, abs=2e-3)
    assert float(solution.stats.squared_change) == pytest.approx(float(X.square().sum()), rel=1e-4)
    assert float(solution.change_bound) >= (1 - 1e-4) * float(X.square().sum())


@pytest.mark.parametrize("side", SIDES)
def test_the_decrease_is_accurate_where_the_first_displacement_is_mere_rounding(side):
    """Equal rows: x is about R / lam, of which only 1e-9 remains in Phi^T x, less than the rounding of the sum."""
    features = DenseFeatures(torch.tensor([[0.8057, -0.4591]] * 2), bias=False)
    Phi = torch.from_numpy(features_matrix(features))
    lam = 1e-4 * torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(Phi, 2).square())
    for seed in range(20):
        R = randn(2, 1, seed=seed).float()
        solution = solve_linear(side(features), R, lam)
        X, start = torch.from_numpy(moved(solution)), float(R.double().square().sum())
        end = float((R.double() + Phi @ X).square().sum() + lam * X.square().sum())
        assert float(solution.stats.decrease) == pytest.approx(1 - end / start, abs=1e-4)


@pytest.mark.parametrize("side", SIDES)
def test_below_the_rounding_of_double_precision_a_larger_lam_is_used_and_reported(side):
    A, R = torch.full((1, 20, 30), 1e3, dtype=torch.float64), randn(1, 20, 4)
    norm = 20 * (30 * 1e6 + 1)  # of 20 equal rows
    floor = 16 * torch.finfo(torch.float64).eps * norm
    status = {lam: solve_linear(side(DenseFeatures(A)), R, lam).stats.status for lam in (0.9 * floor, 1.1 * floor)}
    assert list(status.values()) == [Status.DAMPED, Status.SOLVED]


@pytest.mark.parametrize("side", SIDES)
def test_single_precision_solves_to_the_rounding_of_its_displacement(side):
    """A displacement of size ||R||/sqrt(lam), rounded to single precision, has to stay within a sixteenth of ||R||."""
    A, R = torch.full((1, 20, 30), 1e3), randn(1, 20, 4, dtype=torch.float32)
    floor = (16 * torch.finfo(torch.float32).eps) ** 2 * 20 * (30 * 1e6 + 1)
    status = {lam: solve_linear(side(DenseFeatures(A)), R, lam).stats.status for lam in (0.9 * floor, 1.1 * floor)}
    assert list(status.values()) == [Status.DAMPED, Status.SOLVED]


@pytest.mark.parametrize("side", SIDES)
def test_the_floor_is_set_by_the_largest_eigenvalue(side):
    """Orthonormal rows: the Frobenius norm of their Gram matrix is ten times its largest eigenvalue."""
    A, R = torch.linalg.qr(randn(100, 100))[0], randn(100, 3, seed=1)
    eps = torch.finfo(torch.float64).eps
    status = [solve_linear(side(DenseFeatures(A, bias=False)), R, units * eps).stats.status for units in (8, 20)]
    assert status == [Status.DAMPED, Status.SOLVED]


@pytest.mark.parametrize("side", SIDES)
def test_the_decrease_along_a_direction_as_small_as_lam_counts_the_proximal_term(side):
    """The residual is the last singular vector: of its square, 1, the least objective leaves lam / (s^2 + lam).

    As lam is just above the least that float64 resolves for single precision, the solve is repeated in it.
    """
    lam = 2 * (16 * torch.finfo(torch.float32).eps) ** 2
    Q, P = torch.linalg.qr(randn(40, 26))[0], torch.linalg.qr(randn(26, 26, seed=1))[0]
    features = DenseFeatures((Q * torch.tensor([1.0] * 25 + [math.sqrt(lam)]) @ P.T).float(), bias=False)
    U, S = spectrum(features)
    solution = solve_linear(side(features), U[:, -1:].float(), lam)
    expected = float(S[-1] ** 2 / (S[-1] ** 2 + lam))
    assert 0.3 < expected < 0.7
    assert solution.stats.status == Status.SOLVED
    assert float(solution.stats.decrease) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_outside_the_range_is_not_increased(side, dtype):
    """Two groups of equal rows, and residuals that cancel within each: only rounding can be fitted."""
    rows = randn(2, 40, seed=2, dtype=dtype)
    features = DenseFeatures(rows.repeat_interleave(32, 0))
    half = torch.randint(-8, 9, (32, 24), generator=torch.Generator().manual_seed(3)).to(dtype)
    R = torch.stack([half, -half], 1).flatten(0, 1)
    lam = 17 * torch.finfo(dtype).eps * float(spectrum(features)[1][0] ** 2)
    solution = solve_linear(side(features), R, lam)
    P, X = torch.from_numpy(features_matrix(features)), torch.from_numpy(moved(solution))
    end = float((R.double() + P @ X).square().sum() + lam * X.square().sum())
    assert end <= float(R.double().square().sum()) * (1 + 1e-9)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_in_the_layers_precision_does_not_raise_the_objective_where_it_is_trusted(side, dtype):
    """Repeated rows and a residual that nothing fits, at the smallest lam: an inverse in that precision fails."""
    for seed in range(5):
        features = DenseFeatures(randn(5, 150, seed=seed, dtype=dtype).repeat_interleave(20, 0))
        U, _ = spectrum(features)
        R = randn(100, 24, seed=seed + 100)
        R = (R - U @ (U.T @ R)).to(dtype)
        lam = 1001 * torch.finfo(dtype).eps * float(torch.linalg.vector_norm(side(features).gram.double()))
        solution = solve_linear(side(features), R, lam)
        P, X = torch.from_numpy(features_matrix(features)), torch.from_numpy(moved(solution))
        end = float((R.double() + P @ X).square().sum() + lam * X.square().sum())
        assert end <= float(R.double().square().sum()) * (1 + 2e-5)
        assert solution.stats.status == Status.SOLVED


def test_a_step_of_equal_rows_changes_as_much_as_its_bound():
    """All of U lies along the one large eigenvector of K, whose eigenvalue is tr(K)."""
    solution = solve_linear(Span(DenseFeatures(torch.ones(1, 40, 60))), torch.ones(1, 40, 3), 10.0)
    assert float(solution.stats.squared_change) == pytest.approx(float(solution.change_bound), rel=1e-4)
