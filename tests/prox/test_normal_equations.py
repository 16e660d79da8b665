"""The linear subproblem against dense least squares on [A, 1]."""

import numpy as np
import pytest
import torch
from layer_problems import MOVES, SIDES, features_matrix, moved, randn, ridge

from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Direct, Span, smaller_side
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.status import Status


def _low_rank(g: int, N: int, n: int) -> torch.Tensor:
    return randn(g, N, 2, seed=1) @ randn(g, 2, n, seed=2)


def _repeated(g: int, N: int, n: int) -> torch.Tensor:
    A = randn(g, N, n, seed=3)
    A[:, N // 2 :] = A[:, : N - N // 2]
    A[..., n // 2 :] = A[..., : n - n // 2]
    return A


INPUTS = {
    "wide": randn(1, 4, 9),
    "tall": randn(1, 9, 4),
    "square": randn(1, 6, 6),
    "one sample": randn(1, 1, 5),
    "one input": randn(1, 7, 1),
    "groups, wide": randn(3, 4, 6),
    "groups, tall": randn(3, 8, 3),
    "low rank, wide": _low_rank(2, 5, 8),
    "low rank, tall": _low_rank(2, 8, 5),
    "repeated": _repeated(1, 8, 6),
    "zeros": torch.zeros(1, 4, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("lam", [0.02, 1.0, 50.0])
@pytest.mark.parametrize(("weight", "bias"), MOVES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("A", INPUTS.values(), ids=INPUTS.keys())
def test_closed_form_is_the_least_squares_solution(A, side, weight, bias, lam):
    features = DenseFeatures(A, weight, bias)
    R = randn(A.shape[0], A.shape[1], 3, seed=7)
    P, coordinates = features_matrix(features), side(features)
    solution = solve_linear(coordinates, R, lam)
    expected = np.stack([ridge(p, r, lam) for p, r in zip(P, R.numpy(), strict=True)])
    np.testing.assert_allclose(moved(solution), expected, rtol=1e-10, atol=1e-10)
    assert solution.stats.status == Status.SOLVED
    assert solution.stats.iterations == 0
    assert solution.stats.step_length == 1
    end = np.square(R.numpy() + P @ expected).sum() + lam * np.square(expected).sum()
    decrease = 1 - end / np.square(R.numpy()).sum()
    assert float(solution.stats.decrease) == pytest.approx(decrease, rel=1e-10, abs=1e-12)
    assert float(solution.stats.squared_change) == pytest.approx(np.square(expected).sum(), rel=1e-9, abs=1e-12)
    assert solution.stats.squared_change >= 0


@pytest.mark.parametrize(("weight", "bias"), MOVES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("A", INPUTS.values(), ids=INPUTS.keys())
def test_coordinates_satisfy_their_definition(A, side, weight, bias):
    """adjoint, forward, inner and residual, each by forming the displacement."""
    features = DenseFeatures(A, weight, bias)
    P, coordinates = features_matrix(features), side(features)
    g, N, _ = A.shape

    def displaced(x):
        dW, db = coordinates.displacement(x)
        assert (dW is None) == (not weight)
        assert (db is None) == (not bias)
        parts = ([dW.mT.numpy()] if weight else []) + ([db.unsqueeze(-2).numpy()] if bias else [])
        return np.concatenate(parts, -2)

    E, R = randn(g, N, 3, seed=4), randn(g, N, 3, seed=6)
    x, y = coordinates.adjoint(E), coordinates.adjoint(randn(g, N, 3, seed=5))
    X, Y = displaced(x), displaced(y)
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(X, np.swapaxes(P, 1, 2) @ E.numpy(), **close)
    np.testing.assert_allclose(coordinates.forward(x), P @ X, **close)
    inner = coordinates.inner(x, y, coordinates.forward(y))
    np.testing.assert_allclose(inner, (X * Y).sum(-2), **close)
    np.testing.assert_allclose(features.materialize(), P, **close)
    assert features.size == P.shape[-1]
    gram = P @ np.swapaxes(P, 1, 2) if side is Span else np.swapaxes(P, 1, 2) @ P
    np.testing.assert_allclose(coordinates.gram, gram, **close)
    residual, norm = coordinates.norms(x, coordinates.gram @ x, coordinates.adjoint(R), R.square().sum())
    assert float(norm) == pytest.approx(np.square(X).sum(), rel=1e-10)
    assert float(residual) == pytest.approx(np.square(R.numpy() + P @ X).sum(), rel=1e-10)


@pytest.mark.parametrize("A", INPUTS.values(), ids=INPUTS.keys())
def test_both_coordinates_give_the_same_answer(A):
    features = DenseFeatures(A)
    R = randn(*A.shape[:-1], 4, seed=8)
    span, direct = Span(features), Direct(features)
    by_span, by_direct = solve_linear(span, R, 0.3), solve_linear(direct, R, 0.3)
    np.testing.assert_allclose(moved(by_span), moved(by_direct), rtol=1e-10, atol=1e-10)
    assert float(by_span.stats.decrease) == pytest.approx(float(by_direct.stats.decrease), rel=1e-10)


def test_the_error_signal_through_the_new_weights_does_not_form_them():
    features = DenseFeatures(randn(2, 5, 8))
    coordinates = Span(features)
    U, D = randn(2, 5, 3, seed=9), randn(2, 5, 3, seed=10)
    dW, _ = coordinates.displacement(U)
    assert dW is not None
    torch.testing.assert_close(coordinates.backward_change(D, U), D @ dW, rtol=1e-12, atol=1e-12)
    assert Span(DenseFeatures(features.A, weight=False)).backward_change(D, U) is None


@pytest.mark.parametrize(
    ("N", "n", "weight", "bias", "side"),
    [
        (5, 5, True, False, Span),
        (5, 4, True, False, Direct),
        (5, 4, True, True, Span),  # the column of ones counts
        (6, 4, True, True, Direct),
        (2, 9, False, True, Direct),
        (1, 9, False, True, Span),
    ],
)
def test_the_smaller_gram_matrix_is_chosen(N, n, weight, bias, side):
    coordinates = smaller_side(DenseFeatures(randn(1, N, n), weight, bias))
    assert type(coordinates) is side


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("N", "n", "m"), [(0, 4, 3), (3, 0, 2), (3, 4, 0)])
def test_empty_problems_are_solved(side, N, n, m):
    coordinates = side(DenseFeatures(randn(1, N, n), bias=n > 0))
    solution = solve_linear(coordinates, randn(1, N, m), 1.0)
    assert not moved(solution).any()
    assert solution.stats.status == Status.SOLVED
    assert solution.stats.decrease == 0
    assert solution.stats.squared_change == 0
