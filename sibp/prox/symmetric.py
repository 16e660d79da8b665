"""Gram matrices, and ridge systems with them, at half the price of general products: they are symmetric.

Small matrices are what a batch of a hundred samples gives, and there a library's call costs more than its arithmetic.
`symmetric.c` has both for the CPU; elsewhere torch's products and factorisations serve (`sibp.prox.compiled`).
"""

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sibp.prox import compiled
from sibp.prox.numbers import Flag, Number, at_least, number

_PARALLEL = 1_000_000  # multiply-adds from which several threads are worth waking
_SIDE = 4  # rows of a tile of symmetric.c, which needs twice as many for an inverse
_LARGEST = 320  # rows of a matrix from which on a factorisation by blocks is faster
_LANES = 16  # numbers in the widest vector of symmetric.c: columns are a multiple of this many


class Ridge(NamedTuple):
    """A ridge system (G + damping I) x = -r.

    Attributes:
        solve: gives x for right-hand sides r (..., N, m).
        solved: whether G + damping I is positive definite in this precision; if not, x is of no use.
        scale: ||G||_inf, no less than the largest eigenvalue.
        damping: lam, or the rounding of G if that is more.
        floor: the rounding of G.
    """

    solve: Callable[[Tensor], Tensor]
    solved: Flag
    scale: Number
    damping: Number
    floor: Number


def gram(A: Tensor, plus: float = 0.0) -> Tensor:
    """A A' + plus.

    Args:
        A: (..., N, n).
        plus: for every entry; 1 stands for a further column of ones in A.

    Returns:
        (..., N, N).
    """
    N, n = A.shape[-2:]
    library = _library(A) if A.dim() == 2 and A.numel() else None
    if library is None:
        K = A @ A.mT
        return K.add_(plus) if plus else K
    A = torch.nn.functional.pad(A, (0, -n % _LANES)) if n % _LANES else A.contiguous()
    K = A.new_empty(N, N)
    threads = torch.get_num_threads() if N * N * n > 2 * _PARALLEL else 1
    library.gram(A.data_ptr(), K.data_ptr(), N, A.shape[1], plus, threads)
    return K


def ridge(G: Tensor, lam: float, rounding: float) -> Ridge:
    """Prepares to solve with G + lam I, for a positive semi-definite G.

    Args:
        G: (..., N, N), not empty.
        lam: > 0.
        rounding: lam is raised to this part of ||G||_inf where it is less.
    """
    library = _library(G) if G.dim() == 2 and len(G) <= _LARGEST and G.is_contiguous() else None
    if library is None:
        return _by_cholesky(G, lam, rounding)
    N = len(G)
    scale = library.row_sum_norm(G.data_ptr(), N)
    damping = at_least(lam, rounding * scale)
    inverse, work = torch.empty_like(G), G.new_empty(2 * _SIDE * N)
    solved = library.minus_inverse(G.data_ptr(), inverse.data_ptr(), N, damping, work.data_ptr())

    def solve(r: Tensor) -> Tensor:
        m = r.shape[-1]
        if N < _SIDE or m < _LANES or not r.is_contiguous():
            return inverse @ r
        x = torch.empty_like(r)
        threads = torch.get_num_threads() if N * N * m > _PARALLEL else 1
        library.times(inverse.data_ptr(), r.data_ptr(), x.data_ptr(), N, m, threads)
        return x

    return Ridge(solve, solved == 1, scale, damping, rounding * scale)


def _by_cholesky(G: Tensor, lam: float, rounding: float) -> Ridge:
    """`ridge` by torch's factorisation."""
    scale = number(G.abs().sum(-1).amax())
    damping = at_least(lam, rounding * scale)
    system = G.clone()
    system.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, info = torch.linalg.cholesky_ex(system)

    def solve(r: Tensor) -> Tensor:
        # One product with the inverse is several times faster than triangular solves of many right-hand sides, and in
        # a ridge system, whose conditioning lam bounds, as accurate for our purposes.
        many = 3 * r.shape[-1] >= r.shape[-2]
        return (torch.cholesky_inverse(factor) @ r if many else torch.cholesky_solve(r, factor)).neg_()

    return Ridge(solve, number(info.amax()) == 0, scale, damping, rounding * scale)


def _library(tensor: Tensor) -> ctypes.CDLL | None:
    """The compiled `symmetric.c` for a tensor's dtype, or None where it cannot be had."""
    library = compiled.library("symmetric.c", tensor)
    if library is not None and library.gram.argtypes is None:
        real, size, pointer = compiled.C_TYPES[tensor.dtype], ctypes.c_long, ctypes.c_void_p
        library.row_sum_norm.argtypes, library.row_sum_norm.restype = [pointer, size], real
        library.minus_inverse.argtypes = [pointer, pointer, size, real, pointer]
        library.gram.restype = library.times.restype = None
        library.times.argtypes = [pointer, pointer, pointer, size, size, size]
        library.gram.argtypes = [pointer, pointer, size, size, real, size]
    return library
