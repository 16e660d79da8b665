"""Layers in float64 have no wider precision to fall back to: a solution called solved is as near as one in float32."""

import itertools
from fractions import Fraction

import pytest
import torch
from layer_problems import SIDES, randn

from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.status import Status

F64 = torch.float64
EPS = torch.finfo(F64).eps
ACCURACY = 1e-5  # of the decrease, as `sibp.prox.solvers.checked` asks for


@pytest.mark.parametrize(("multiple", "seed"), [*itertools.product([17, 30, 100], range(4)), (1000, 0)])
@pytest.mark.parametrize("N", [10, 300])
def test_features_that_are_all_equal(N: int, multiple: int, seed: int):
    """With A = 1 (N x n), W - W_new = -V, all of whose rows are sum(R) / (N n + lam); sums of fractions are exact."""
    n = N + 5
    lam = multiple * EPS * N * n
    R = randn(N, 1, seed=seed)
    solution = solve_linear(SIDES[0](DenseFeatures(torch.ones(N, n, dtype=F64), bias=False)), R, lam)
    assert solution.stats.status is Status.SOLVED
    V = solution.coordinates.entries(solution.x)[:, 0]
    along, squared = sum(map(Fraction, V.tolist())), sum(Fraction(v) ** 2 for v in V.tolist())
    residual = sum(map(Fraction, R[:, 0].tolist()))
    decrease = -(2 * along * residual + N * along**2 + Fraction(lam) * squared)
    most = n * residual**2 / (N * n + Fraction(lam))
    assert 0 <= most - decrease <= ACCURACY * most


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("decay", [2.0, 4.0])
def test_spectra_that_fall_by_a_power(side, decay: float):
    """The minimiser is known from the singular values and vectors that A was made from."""
    N = 40
    P, Q = (torch.linalg.qr(randn(N, N, seed=seed))[0] for seed in (1, 2))
    s = torch.arange(1, N + 1, dtype=F64) ** -decay
    A = (P * s) @ Q.mT
    lam = 20 * EPS * float(s.square().sum())
    R = randn(N, 3, seed=3)
    solution = solve_linear(side(DenseFeatures(A, bias=False)), R, lam)
    assert solution.stats.status is Status.SOLVED
    V = solution.coordinates.entries(solution.x)
    decrease = R.square().sum() - (R + A @ V).square().sum() - lam * V.square().sum()
    most = ((P.mT @ R).square() * (s.square() / (s.square() + lam)).unsqueeze(-1)).sum()
    assert most - decrease <= ACCURACY * most
