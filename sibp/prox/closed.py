"""Compiled code for the closed form: a Gram matrix from one of its triangles; factor and solution in one call.

The Gram matrix of a batch of a hundred samples is so small that torch's overhead of a few microseconds per call takes
as long as the arithmetic. If `kernels/closed.c` is missing (`sibp.prox.kernels`) or a matrix is large,
`sibp.prox.operators` and `sibp.prox.solvers.linear` use torch operations, with the same results up to rounding.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from sibp.prox import kernels

_LARGEST = 1024  # rows of a system up to which the kernel is faster
_LARGEST_GRAM = 767  # rows of A up to which the kernel is faster than torch's matrix product
_PARALLEL = 2_000_000  # multiply-adds above which several threads pay off
_LINE = 64  # bytes of a cache line
_Results = ctypes.c_double * 7  # `found` of closed.c


def outer_gram(A: Tensor, plus: float) -> Tensor | None:
    """A A^T + plus, (N, N); computes one triangle and mirrors it.

    Args:
        A: (N, n).
        plus: added to every entry.

    Returns:
        None if no kernel supports the inputs.
    """
    if A.dim() != 2 or not 0 < A.shape[0] <= _LARGEST_GRAM or not A.is_contiguous():
        return None
    library = kernels.library(A)
    if library is None:
        return None
    (N, n), address = A.shape, A.data_ptr()
    aligned = n * A.itemsize % _LINE == 0 and address % _LINE == 0
    work = kernels.workspace(A.dtype, 0 if aligned else N * (n + _LINE))
    K = A.new_empty(N, N)
    threads = torch.get_num_threads() if N * N * n >= _PARALLEL else 1
    library.outer_gram(address, K.data_ptr(), work.data_ptr(), N, n, plus, threads)
    return K


class ResidualSums(NamedTuple):
    """Sums from which the accuracy of a solution X of (G + lam I) X = -R is estimated, with random signs S.

    Attributes:
        RR: ||R||^2.
        RX: <R, X>.
        error: ||(R + (G + lam I) X) S||^2.
    """

    RR: float
    RX: float
    error: float


class Answer(NamedTuple):
    """The result of `minus_solve`.

    Attributes:
        x: the solution, of R's shape; None if a pivot is not positive, or if lam is too small and no probes are given.
        norm: ||G||_F.
        largest: the largest entry of G, which is on its diagonal.
        energy: <x, (G + lam I) x>. This attribute and the following ones are meaningless if x is None.
        XX: ||x||^2.
        residual_sums: the sums that check x, if lam is too small and probes are given; None otherwise.
    """

    x: Tensor | None
    norm: float
    largest: float
    energy: float
    XX: float
    residual_sums: ResidualSums | None


def minus_solve(G: Tensor, R: Tensor, lam: float, resolved: float, probes: Tensor | None = None) -> Answer | None:
    """-(G + lam I)^-1 R by a Cholesky factor in the precision of G.

    Args:
        G: (r, r) symmetric, positive semidefinite up to rounding; or (1, r, r).
        R: (r, m), or (1, r, m).
        lam: damping.
        resolved: the smallest lam / ||G|| for which the solution needs no check.
        probes: (m, 16) S of `ResidualSums`.

    Returns:
        None if no kernel supports the inputs.
    """
    setup = _kernels_for(G, R)
    if setup is None:
        return None
    library, work, threads = setup
    r, m = R.shape[-2:]
    R = R.contiguous()
    X, results, S = torch.empty_like(R), _Results(), None if probes is None else probes.data_ptr()
    outcome = library.minus_solve(
        G.data_ptr(), R.data_ptr(), X.data_ptr(), S, work.data_ptr(), r, m, threads, lam, resolved, results
    )
    norm, largest, energy, XX, RR, RX, error = results
    residual_sums = ResidualSums(RR, RX, error) if outcome == 2 else None
    return Answer(X if outcome else None, norm, largest, energy, XX, residual_sums)


def minus_substitute(L: Tensor, R: Tensor) -> Tensor | None:
    """-(L L^T)^-1 R, of the shape of R, from a Cholesky factor; up to three times faster than `torch.cholesky_solve`.

    Args:
        L: (r, r), or (1, r, r); only the lower triangle is read.
        R: (r, m), or (1, r, m), of the same dtype.

    Returns:
        None if no kernel supports the inputs.
    """
    setup = _kernels_for(L, R)
    if setup is None:
        return None
    library, work, threads = setup
    R = R.contiguous()
    X = torch.empty_like(R)
    library.minus_substitute(L.data_ptr(), R.data_ptr(), X.data_ptr(), work.data_ptr(), *R.shape[-2:], threads)
    return X


def _kernels_for(M: Tensor, R: Tensor) -> tuple[kernels.Kernels, Tensor, int] | None:
    """The kernels for a system M X = R, their workspace and number of threads; None if they do not support it."""
    *leading, r, m = R.shape
    if not 0 < r <= _LARGEST or (leading and leading != [1]) or not M.is_contiguous():
        return None
    library = kernels.library(M)
    if library is None:
        return None
    threads = torch.get_num_threads() if r * r * (m + r // 6) >= _PARALLEL else 1  # of two substitutions and a factor
    return library, kernels.workspace(M.dtype, library.solve_size(r, threads)), threads
