"""The closed form in compiled form: half of a Gram matrix's products, and a factor and its solutions in one call.

A layer of a hundred samples has a Gram matrix of a few thousand numbers, on which torch's overhead of a few
microseconds a call is as long as the arithmetic. Where `kernels/closed.c` is missing (`sibp.prox.kernels`), or a matrix
is large, `sibp.prox.operators` and `sibp.prox.solvers.linear` use torch operations, with the same results up to
rounding.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from sibp.prox import kernels

_LARGEST = 1024  # rows of a system up to which the kernel is faster
_LARGEST_GRAM = 767  # rows of A up to which the kernel is faster than a numerical library
_PARALLEL = 2_000_000  # multiply-adds above which several threads pay off
_LINE = 64  # bytes of a cache line
_Found = ctypes.c_double * 7


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
    (N, n), place = A.shape, A.data_ptr()
    lines = n * A.itemsize % _LINE == 0 and place % _LINE == 0
    work = kernels.workspace(A.dtype, 0 if lines else N * (n + _LINE))
    K = A.new_empty(N, N)
    threads = torch.get_num_threads() if N * N * n >= _PARALLEL else 1
    library.outer_gram(place, K.data_ptr(), work.data_ptr(), N, n, plus, threads)
    return K


class ResidualSums(NamedTuple):
    """Sums that check a solution X of (G + lam I) X = -R, with random signs S.

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
        x: the solution, of the shape of R; None if a pivot is not positive, or if lam is too small and there are no
            probes.
        norm: ||G||_F.
        largest: the largest entry of G, which is on its diagonal.
        energy: <x, (G + lam I) x>. This attribute and the following ones are meaningless if x is None.
        XX: ||x||^2.
        residual_sums: the sums that check x, if lam is too small and there are probes; None otherwise.
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
        G: (r, r) symmetric, positive semidefinite but for rounding; or (1, r, r).
        R: (r, m), or (1, r, m).
        lam: damping.
        resolved: the smallest lam / ||G|| for which the solution needs no check.
        probes: (m, 16) S of `ResidualSums`.

    Returns:
        None if no kernel supports the inputs.
    """
    place = _kernels_for(G, R)
    if place is None:
        return None
    library, work, threads = place
    r, m = R.shape[-2:]
    R = R.contiguous()
    X, found, S = torch.empty_like(R), _Found(), None if probes is None else probes.data_ptr()
    done = library.minus_solve(
        G.data_ptr(), R.data_ptr(), X.data_ptr(), S, work.data_ptr(), r, m, threads, lam, resolved, found
    )
    norm, largest, energy, XX, RR, RX, error = found
    return Answer(X if done else None, norm, largest, energy, XX, ResidualSums(RR, RX, error) if done == 2 else None)


def minus_substitute(L: Tensor, R: Tensor) -> Tensor | None:
    """-(L L^T)^-1 R, of the shape of R, from a Cholesky factor; up to three times faster than `torch.cholesky_solve`.

    Args:
        L: (r, r), or (1, r, r); only the lower triangle is read.
        R: (r, m), or (1, r, m), of the same dtype.

    Returns:
        None if no kernel supports the inputs.
    """
    place = _kernels_for(L, R)
    if place is None:
        return None
    library, work, threads = place
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
    threads = torch.get_num_threads() if r * r * m >= _PARALLEL else 1
    return library, kernels.workspace(M.dtype, library.solve_size(r, threads)), threads
