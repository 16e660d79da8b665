"""The rounds of `sibp.prox.solvers.nonlinear` in compiled form: the same arithmetic, several times faster on a CPU.

Between two products with the Gram matrix, a round is a long chain of cheap operations on (N, m) tensors, each of which
costs a trip through memory. `kernels/fused.c` takes a few neurons through all their rounds at once, in the nearer
caches. Where it is missing (`sibp.prox.kernels`), or the case is none of its own, `solve_nonlinear` goes its ordinary
way, with the same results up to rounding.
"""

import ctypes
import math
import threading
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox import kernels
from sibp.prox.kernels import C_TYPES
from sibp.prox.numbers import Number
from sibp.prox.solvers.coordinates import Coordinates

_PARALLEL = 1_000_000  # multiply-adds of all products from which several threads are worth waking


class Rounds(NamedTuple):
    """Where a number of rounds ended.

    Attributes:
        x: (..., r, m) coefficients.
        squared_change: <x, x> summed over neurons.
        start: f(0) summed over neurons.
        end: f(x) summed over neurons.
        gradient: squared gradient norms summed over neurons and rounds.
        step_length: mean accepted step length over neurons and rounds.
        doubtful: the number of neurons whose answer rounding may have spoiled.
    """

    x: Tensor
    squared_change: Number
    start: Number
    end: Number
    gradient: Number
    step_length: Number
    doubtful: Number


def usable(coordinates: Coordinates, Z: Tensor, s: Activation) -> bool:
    """Whether `rounds` can take this case.

    Args:
        coordinates: of the layer's features, whose matrix has to be at hand.
        Z: pre-activations, on a CPU with kernels.
        s: the layer's activation, one of `kernels.KINDS`.
    """
    taken = kernels.kind_of(s) is not None and Z.numel() > 0 and coordinates.size > 0
    return taken and kernels.library(Z) is not None and coordinates.matrix is not None


def rounds(
    coordinates: Coordinates,
    Z: Tensor,
    T: Tensor,
    lam: float,
    s: Activation,
    number: int,
    *,
    shrink_factor: float,
    rounding_units: float,
    tolerance: float,
) -> Rounds:
    """Takes `number` rounds from x = 0; see `solve_nonlinear` for the arguments and for what a round does.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m) pre-activations, on the CPU.
        T: (..., N, m) target.
        lam: proximal weight.
        s: an activation that has a kernel.
        number: of rounds.
        shrink_factor: by which a refused neuron's next step is shortened.
        rounding_units: units in the last place by which a residual may be rounded.
        tolerance: relative error of a residual from which on a neuron's answer is doubtful.
    """
    (*leading, N, m), r = Z.shape, coordinates.size
    matrix = coordinates.matrix
    assert matrix is not None
    direct = coordinates.direct
    groups = math.prod(leading)
    library = kernels.library(Z)
    assert library is not None
    library.work_size.restype = ctypes.c_long
    threads = torch.get_num_threads() if number * N * r * m >= _PARALLEL else 1
    kind = kernels.kind_of(s) or 0
    work = _workspace(Z.dtype, library.work_size(*map(ctypes.c_long, (N, r, direct, threads, kind))))
    problem = _problem_type(Z.dtype)(
        N=N, r=r, m=m, direct=direct, rounds=number, threads=threads, kind=kind, a=s.negative_slope or 0.0, lam=lam,
        shrink_factor=shrink_factor, tolerated=tolerance**2, work=work.data_ptr(),
    )  # fmt: skip
    x = Z.new_empty(groups, r, m)
    figures = Z.new_empty(groups, len(_FIGURES), m)
    eps = torch.finfo(Z.dtype).eps
    noise = (coordinates.rounding, coordinates.amplification, coordinates.squared_norm_of_forward)
    Z, T, matrix = (t.reshape(groups, *t.shape[-2:]).contiguous() for t in (Z, T, matrix))
    for g, (rounding, amplification, squared) in enumerate(zip(*(t.flatten().tolist() for t in noise), strict=True)):
        problem.rounding, problem.error = rounding, squared * eps**2
        problem.residual_rounding = amplification * (rounding_units * eps) ** 2
        for name, tensor in {"Z": Z, "T": T, "matrix": matrix, "X": x}.items():
            setattr(problem, name, tensor[g].data_ptr())
        row = figures[g].data_ptr()
        for place, name in enumerate(_FIGURES):
            setattr(problem, name, row + place * m * Z.element_size())
        library.rounds(ctypes.byref(problem))
    start, f, norm, steps, descent, doubtful = figures.sum((0, 2)).tolist()
    return Rounds(x.view(*leading, r, m), norm, start, f, descent, steps / (number * groups * m), doubtful)


_REALS = ("a", "lam", "rounding", "residual_rounding", "shrink_factor", "error", "tolerated")
_FIGURES = ("start", "f", "norm", "steps", "descent", "doubtful")
_buffers = threading.local()


def _workspace(dtype: torch.dtype, size: int) -> Tensor:
    """Memory for the rounds, kept from layer to layer and step to step: fresh memory costs more than its use."""
    kept = vars(_buffers).get(str(dtype))
    if kept is None or len(kept) < size:
        kept = torch.empty(size, dtype=dtype)
        setattr(_buffers, str(dtype), kept)
    return kept[:size]


@cache
def _problem_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    """`Problem` of fused.c."""
    real = C_TYPES[dtype]

    class Problem(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_long) for name in ("N", "r", "m", "direct", "rounds", "threads", "kind")),
            *((name, real) for name in _REALS),
            *((name, ctypes.c_void_p) for name in ("Z", "T", "matrix", "X", "work", *_FIGURES)),
        )

    return Problem
