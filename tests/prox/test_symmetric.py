"""Gram matrices and ridge systems, compiled and plain, against float64 products and solves."""

import math

import pytest
import torch
from layer_problems import randn

from sibp.prox.compiled import disabled
from sibp.prox.symmetric import gram, ridge

pytestmark = pytest.mark.usefixtures("both_ways")
# Torch's own products round differently with the number of threads on some processors; ours promise not to.
compiled_only = pytest.mark.parametrize("both_ways", ["compiled"], indirect=True)
# Around whole tiles and vectors, and past a stretch of columns.
SHAPES = [(1, 1), (2, 3), (3, 16), (4, 17), (5, 40), (16, 15), (17, 33), (33, 100), (100, 784), (6, 1025), (9, 2100)]
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 100]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plus", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_the_product(shape, plus: float, dtype: torch.dtype):
    A = randn(*shape).to(dtype)
    before = A.clone()
    K = gram(A, plus)
    expected = A.double() @ A.double().T + plus
    assert K.dtype == dtype
    torch.testing.assert_close(
        K.double(), expected, rtol=0, atol=64 * torch.finfo(dtype).eps * float(expected.abs().max())
    )
    assert torch.equal(A, before)


def test_gram_of_columns_and_of_slices():
    A = randn(32, 30)
    torch.testing.assert_close(gram(A.T), A.T @ A, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gram(A[1:20:2, 3:24]), A[1:20:2, 3:24] @ A[1:20:2, 3:24].T, rtol=1e-13, atol=1e-13)


def test_gram_of_groups_and_of_nothing():
    A = randn(3, 5, 7)
    torch.testing.assert_close(gram(A, 1.0), A @ A.mT + 1, rtol=1e-13, atol=1e-13)
    assert torch.equal(gram(A[0][:, :0], 1.0), torch.ones(5, 5, dtype=A.dtype))
    assert gram(A[0][:0]).shape == (0, 0)


@compiled_only
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_gram_of_several_threads_is_the_same_to_the_last_bit(threads: int):
    A = randn(120, 400)
    alone, before = gram(A), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = gram(A)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("columns", [1, 3, 17, 40, 64, 131])
@pytest.mark.parametrize("lam", [1e-3, 10.0])
def test_ridge_solves_the_system(N: int, columns: int, lam: float):
    A, r = randn(N, 2 * N, seed=1), randn(N, columns, seed=2)
    G = A @ A.T
    before = G.clone()
    system = ridge(G, lam, 1e-15)
    assert system.solved
    assert system.damping == lam
    expected = torch.linalg.solve(G + lam * torch.eye(N, dtype=G.dtype), -r)
    torch.testing.assert_close(system.solve(r), expected, rtol=1e-9, atol=1e-11)
    assert float(system.scale) == pytest.approx(float(G.abs().sum(1).max()))
    assert torch.equal(G, before)


@compiled_only
@pytest.mark.parametrize("columns", [132, 140, 500])  # 132: a second thread would have less than a vector
def test_ridge_solved_by_several_threads_is_the_same_to_the_last_bit(columns: int):
    A, r = randn(150, 200, seed=1), randn(150, columns, seed=2)
    system, before = ridge(A @ A.T, 1.0, 1e-15), torch.get_num_threads()
    alone = system.solve(r)
    try:
        torch.set_num_threads(2)
        together = system.solve(r)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)
    torch.testing.assert_close(
        alone, torch.linalg.solve(A @ A.T + torch.eye(150, dtype=A.dtype), -r), rtol=1e-9, atol=1e-11
    )


def test_ridge_of_a_singular_matrix_in_single_precision():
    """Rank 2 of 12: only lam makes it solvable."""
    A, r = randn(12, 2), randn(12, 5)
    G = (A @ A.T).float()
    x = ridge(G, 0.5, 1e-7).solve(r.float())
    expected = torch.linalg.solve(A @ A.T + 0.5 * torch.eye(12, dtype=A.dtype), -r)
    assert (x.double() - expected).norm() < 1e-5 * expected.norm()


def test_lam_is_raised_to_the_rounding_of_the_matrix():
    G = torch.diag(torch.tensor([1e8, 1.0])).float()
    system = ridge(G, 1e-3, 1e-7)
    assert float(system.floor) == pytest.approx(10.0)
    assert float(system.damping) == pytest.approx(10.0)
    torch.testing.assert_close(
        system.solve(torch.ones(2, 1)), torch.tensor([[-1 / (1e8 + 10)], [-1 / 11]]), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("place", [0, 3, 5, 8])
def test_a_matrix_that_is_not_positive_definite_is_not_solved(place: int):
    """One negative eigenvalue, met at the first pivot of a block, inside one, or in the last."""
    G = torch.eye(9, dtype=torch.float64)
    G[place, place] = -2.0
    assert not ridge(G, 1.0, 0.0).solved
    G[place, place] = -0.5
    assert ridge(G, 1.0, 0.0).solved
    G = torch.ones(9, 9, dtype=torch.float64) - 2 * torch.eye(9, dtype=torch.float64)  # seen only below the diagonal
    assert not ridge(G, 1.0, 0.0).solved


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_called_solved(bad: float):
    G = torch.eye(6, dtype=torch.float32)
    G[2, 4] = G[4, 2] = bad
    system = ridge(G, 1.0, 0.0)
    assert not (system.solved and math.isfinite(system.scale) and bool(torch.isfinite(system.solve(G)).all()))
    assert not math.isfinite(system.scale)


def test_large_and_grouped_systems_are_factorised():
    for G in (torch.eye(400, dtype=torch.float64), torch.eye(5, dtype=torch.float64).repeat(2, 1, 1)):
        r = randn(*G.shape[:-1], 7)
        torch.testing.assert_close(ridge(G, 1.0, 0.0).solve(r), -r / 2, rtol=1e-13, atol=1e-13)


def test_compiled_and_plain_agree():
    A = randn(50, 90)
    here = ridge(gram(A, 1.0), 0.1, 1e-15).solve(randn(50, 20, seed=3))
    with disabled():
        there = ridge(gram(A, 1.0), 0.1, 1e-15).solve(randn(50, 20, seed=3))
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-11)
