"""Problems whose squares overflow or underflow are the same problems as at another scale, where squares fit."""

import math

import pytest
import torch
from layer_problems import ACTIVATIONS, SIDES, features_matrix, moved, objective, randn
from test_spectra import matrix

from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.status import Status

pytestmark = pytest.mark.usefixtures("both_ways")
SINGLE, DOUBLE = torch.float32, torch.float64


def dependent(dtype: torch.dtype) -> torch.Tensor:
    """(24, 18) inputs with singular values from 1 to 1e-5, each row twice."""
    return matrix(12, 18, 12, 1e5, seed=3).repeat(2, 1).to(dtype)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lam", [1e-9, 1e-3])
@pytest.mark.parametrize(
    ("dtype", "power"), [(SINGLE, -110), (SINGLE, -80), (SINGLE, 42), (DOUBLE, -900), (DOUBLE, 470)]
)
def test_a_closed_form_is_linear_in_its_residual(side, lam, dtype, power):
    features, R, scale = DenseFeatures(dependent(dtype), bias=False), randn(24, 5, seed=1, dtype=dtype), 2.0**power
    usual, solution = (solve_linear(side(features), factor * R, lam) for factor in (1.0, scale))
    difference = moved(solution) / scale - moved(usual)
    P = features_matrix(features)
    excess = ((P @ difference) ** 2).sum() + lam * (difference**2).sum()
    assert excess < 1e-4 * float(R.double().square().sum())
    assert solution.stats.status == usual.stats.status == Status.SOLVED
    assert float(solution.stats.decrease) == pytest.approx(float(usual.stats.decrease), abs=1e-3)


def test_coefficients_too_small_for_a_square_are_checked_all_the_same():
    """Two columns that are equal but for rounding, and a residual that they do not fit."""
    features, R = DenseFeatures(torch.full((17, 1), 3.6e17), bias=False), randn(17, 1, seed=2)
    R = (1e-12 * (R - R.mean())).float()
    lam = 4e-7 * 17 * 3.6e17**2
    X, P = moved(solve_linear(Span(features), R, lam)), features_matrix(features)
    start, end = (float(objective(P, R, 0 * R, lam, lambda z: z, point).sum()) for point in (0 * X, X))
    assert end <= start * (1 + 1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_a_gram_matrix_that_underflows_counts_beside_a_lam_as_small(side):
    A, R, scale = randn(3, 17, seed=1, dtype=SINGLE), randn(3, 2, seed=2, dtype=SINGLE), 2.0**-80
    usual = solve_linear(side(DenseFeatures(A, bias=False)), R, 5.0)
    solution = solve_linear(side(DenseFeatures(scale * A, bias=False)), scale * R, 5.0 * scale**2)
    torch.testing.assert_close(torch.from_numpy(moved(solution)), torch.from_numpy(moved(usual)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("power", [-330, 0, 300])
def test_the_floor_of_lam_is_the_same_at_every_scale(side, power):
    A, R, scale = torch.ones(5, 30, dtype=DOUBLE), randn(5, 4), 2.0**power
    floor = 16 * torch.finfo(DOUBLE).eps * 150 * scale**2
    solutions = [solve_linear(side(DenseFeatures(scale * A, bias=False)), R, part * floor) for part in (0.9, 1.1)]
    assert [solution.stats.status for solution in solutions] == [Status.DAMPED, Status.SOLVED]


@pytest.mark.parametrize("side", SIDES)
def test_numbers_that_can_be_squared_once_only_raise_nothing(side):
    features = DenseFeatures(torch.full((1, 1), 2.4e-56, dtype=DOUBLE), bias=False)
    solution = solve_linear(side(features), torch.full((1, 1), 6.7e128, dtype=DOUBLE), 8.5e-125)
    assert math.isfinite(float(solution.stats.squared_change))


@pytest.mark.parametrize("side", SIDES)
def test_no_displacement_times_a_huge_step_is_no_displacement(side):
    solution = solve_linear(side(DenseFeatures(randn(3, 4))), torch.zeros(3, 2, dtype=DOUBLE), 1.0).scaled(1e200)
    assert float(solution.stats.squared_change) == 0
    assert float(solution.change_bound) >= 0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
def test_conjugate_gradients_move_tiny_outputs_as_they_move_others(side, bias, name):
    """s(c z) = c s(z) for c > 0, so the subproblem of c Z and c T has c times the solution."""
    s, _ = ACTIVATIONS[name]
    features, scale = DenseFeatures(randn(9, 5, dtype=SINGLE), bias=bias), 2.0**-80
    Z, T = (randn(9, 4, seed=seed, dtype=SINGLE) for seed in (1, 2))
    usual = solve_nonlinear(side(features), Z, T, 0.5, s, 4)
    solution = solve_nonlinear(side(features), scale * Z, scale * T, 0.5, s, 4)
    torch.testing.assert_close(
        torch.from_numpy(moved(solution) / scale), torch.from_numpy(moved(usual)), rtol=1e-3, atol=1e-4
    )
    assert float(solution.stats.decrease) == pytest.approx(float(usual.stats.decrease), rel=1e-3)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["identity", "relu"])
def test_conjugate_gradients_see_gradients_that_cannot_be_squared(side, name):
    """Inputs of 1e-21 with lam in proportion: the residual is of size 1, its gradient is not."""
    s, _ = ACTIVATIONS[name]
    A, scale = randn(9, 5, dtype=SINGLE), 2.0**-70
    Z, T = (randn(9, 4, seed=seed, dtype=SINGLE) for seed in (1, 2))
    usual = solve_nonlinear(side(DenseFeatures(A, bias=False)), Z, T, 0.5, s, 4)
    solution = solve_nonlinear(side(DenseFeatures(scale * A, bias=False)), Z, T, 0.5 * scale**2, s, 4)
    torch.testing.assert_close(
        torch.from_numpy(scale * moved(solution)), torch.from_numpy(moved(usual)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("scale", [1.0, 2.0**-80])
def test_a_tiny_residual_of_mere_rounding_changes_nothing(scale):
    Z = scale * randn(9, 4, seed=1, dtype=SINGLE)
    solution = solve_nonlinear(
        Direct(DenseFeatures(randn(9, 5, dtype=SINGLE))), Z, Z * (1 + 2.0**-23), 0.5, ACTIVATIONS["identity"][0], 4
    )
    assert not moved(solution).any()
