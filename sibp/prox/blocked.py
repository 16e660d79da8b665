"""Blocked algorithms for large symmetric matrices: products with half of the work, and Cholesky factors in place."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sibp.prox import kernels

_SMALLEST = 256  # rows from which the saved work outweighs the lower speed of smaller products
_PRODUCT, _FACTOR = 128, 256  # rows of a block


def symmetric_product(A: Tensor) -> Tensor:
    """A A^T, (..., N, N), from A (..., N, n); for large N, each off-diagonal block is computed once."""
    N = A.shape[-2]
    if A.dim() != 2 or N < _SMALLEST or not A.is_cpu or torch.compiler.is_compiling():
        return A @ A.mT
    K = A.new_empty(N, N)
    for first, end in _spans(N, _PRODUCT):
        torch.mm(A[first:], A[first:end].T, out=K[first:, first:end])
    if library := kernels.library(K):
        library.mirror(K.data_ptr(), N)
        return K
    return K.tril_().add_(K.tril(-1).T)  # within diagonal blocks, too: some libraries do not round symmetrically


def factor_in_place(M: Tensor) -> bool:
    """Overwrites the lower triangle of M (r, r) with its Cholesky factor; False if M is not positive definite.

    The entries above the diagonal are undefined afterwards.
    """
    for first, end in _spans(len(M), _FACTOR):
        L, info = torch.linalg.cholesky_ex(M[first:end, first:end])
        if info.item():
            return False
        M[first:end, first:end] = L
        if end < len(M):
            below = torch.linalg.solve_triangular(L, M[end:, first:end].T, upper=False).T
            M[end:, first:end] = below
            for start, stop in _spans(len(M) - end, _FACTOR):
                M[end + start :, end + start : end + stop].addmm_(below[start:], below[start:stop].T, alpha=-1)
    return True


def _spans(N: int, block: int) -> Iterator[tuple[int, int]]:
    """Ranges of nearly equal length that divide N rows, none longer than a block."""
    number = -(-N // block)
    return ((N * k // number, N * (k + 1) // number) for k in range(number))
