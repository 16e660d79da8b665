"""The closed form's small matrices in compiled form: fewer products, and one call in the place of a dozen.

A layer of a hundred samples has a Gram matrix of a few thousand numbers, on which torch's overhead of a few
microseconds a call is as long as the arithmetic. Where `kernels/closed.c` is missing (`sibp.prox.kernels`), or a matrix
is large, `sibp.prox.operators` and `sibp.prox.solvers.linear` use torch operations, with the same results up to
rounding.
"""

import ctypes
import threading
from functools import cache

import torch
from torch import Tensor

from sibp.prox import kernels

_LARGEST = 256  # rows of a matrix up to which the kernels are the faster way
_PARALLEL = 1_000_000  # multiply-adds from which several threads are worth waking


def outer_gram(A: Tensor, plus: float) -> Tensor | None:
    """A A^T + plus, (N, N), by half of its products.

    Args:
        A: (N, n).
        plus: added to every entry.

    Returns:
        None where there is no kernel for it.
    """
    if A.dim() != 2 or not 0 < A.shape[0] <= _LARGEST or not A.is_contiguous():
        return None
    library = kernels.library(A)
    if library is None:
        return None
    N, n = A.shape
    K = A.new_empty(N, N)
    threads = torch.get_num_threads() if N * N * n >= 2 * _PARALLEL else 1
    library.outer_gram(
        ctypes.c_void_p(A.data_ptr()), ctypes.c_void_p(K.data_ptr()),
        ctypes.c_long(N), ctypes.c_long(n), ctypes.c_double(plus), ctypes.c_long(threads),
    )  # fmt: skip
    return K


def minus_inverse(G: Tensor, lam: float, resolved: float) -> tuple[Tensor | None, float] | None:
    """-(G + lam I)^-1, worked out in double precision and rounded to single, if lam >= resolved ||G||.

    An inverse in double precision serves for a layer in single precision only: of a layer in double precision, its
    rounding would be that of a factor of a larger condition number.

    Args:
        G: (r, r) symmetric, positive semidefinite but for rounding.
        lam: damping.
        resolved: the smallest lam / ||G|| that is wanted.

    Returns:
        (inverse, ||G||_F), the inverse being None if lam is smaller, or if G + lam I is not positive definite; None
        where there is no kernel for it.
    """
    if G.dtype is not torch.float32 or G.dim() != 2 or not 0 < G.shape[0] <= _LARGEST or not G.is_contiguous():
        return None
    library = kernels.library(G)
    if library is None:
        return None
    inverse, r = torch.empty_like(G), len(G)
    call = library.minus_inverse
    call.restype = ctypes.c_int
    memory = _memory()
    failed = call(
        ctypes.c_void_p(G.data_ptr()), ctypes.c_void_p(inverse.data_ptr()), ctypes.c_long(r),
        ctypes.c_double(lam), ctypes.c_double(resolved), memory.work, ctypes.byref(memory.norm),
    )  # fmt: skip
    return None if failed else inverse, memory.norm.value


class _Memory(threading.local):
    """What the kernel works in, kept from call to call: one for each thread."""

    def __init__(self) -> None:
        self._numbers = torch.empty(_LARGEST * (_LARGEST + 8), dtype=torch.float64)
        self.work = ctypes.c_void_p(self._numbers.data_ptr())
        self.norm = ctypes.c_double()


@cache
def _memory() -> _Memory:
    """Made at the first call."""
    return _Memory()
