"""Blocked products and factorisations, against those of the whole matrix in float64."""

import pytest
import torch
from layer_problems import randn

from sibp.prox.blocked import factor_in_place, symmetric_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "n"), [(255, 50), (256, 50), (500, 3), (513, 600)])
def test_a_symmetric_product_is_the_product(N, n, dtype):
    for A in (randn(N, n, dtype=dtype), randn(n, N, dtype=dtype).T):
        K, exact = symmetric_product(A), A.double() @ A.double().T
        assert torch.equal(K, K.T) or N < 256  # left to the library, which may round otherwise above the diagonal
        assert K.dtype is dtype
        bound = float(torch.finfo(dtype).eps * n**0.5 * exact.diagonal().max())
        torch.testing.assert_close(K.double(), exact, rtol=0, atol=4 * bound)


def test_products_of_groups_are_left_to_torch():
    A = randn(2, 400, 5)
    torch.testing.assert_close(symmetric_product(A), A @ A.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [0, 1, 255, 256, 257, 700])
def test_a_factor_times_its_transpose_is_the_matrix(r, dtype):
    A = randn(r, r + 1, dtype=dtype)
    M = A @ A.T + torch.eye(r, dtype=dtype)
    L = M.clone()
    assert factor_in_place(L)
    L = L.tril().double()
    torch.testing.assert_close(L @ L.T, M.double(), rtol=0, atol=float(torch.finfo(dtype).eps * r * 20 + 1e-300))


@pytest.mark.parametrize("place", [0, 300, 599])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(place):
    M = torch.eye(600)
    M[place, place] = -1
    assert not factor_in_place(M)
