"""Compiled code for the iterations of `sibp.prox.solvers.nonlinear`: the same arithmetic, fewer passes through memory.

Between two products with the Gram matrix, an iteration is a long chain of cheap operations on (N, m) tensors. As a
torch operation, each is a pass through memory. `kernels/fused.c` runs all iterations for a few neurons at a time, whose
data stay in cache. If it is missing (`sibp.prox.kernels`) or the inputs are unsupported, `solve_nonlinear` uses torch
operations, with the same results up to rounding.
"""

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox import kernels
from sibp.prox.scalars import Scalar
from sibp.prox.solvers.coordinates import Coordinates

_PARALLEL = 1_000_000  # multiply-adds of all products above which several threads pay off


class Iterates(NamedTuple):
    """The result of the iterations.

    Attributes:
        x: (..., r, m) coefficients.
        squared_change: <x, x> summed over neurons.
        start: f(0) summed over neurons.
        end: f(x) summed over neurons.
        gradient: squared gradient norms summed over neurons and iterations.
        step_length: mean accepted step length over neurons and iterations.
        doubtful: number of neurons whose answer may be dominated by rounding.
        change_bound: an upper bound of <x, x>; infinite if unknown.
    """

    x: Tensor
    squared_change: Scalar
    start: Scalar
    end: Scalar
    gradient: Scalar
    step_length: Scalar
    doubtful: Scalar
    change_bound: float = math.inf


def usable(coordinates: Coordinates, Z: Tensor, s: Activation) -> bool:
    """Whether `iterate` supports these inputs.

    Args:
        coordinates: of the layer's features; their matrix must be available.
        Z: pre-activations, on a CPU with kernels.
        s: the layer's activation, one of `kernels.KINDS`.
    """
    supported = kernels.kind_of(s) is not None and Z.numel() > 0 and coordinates.size > 0
    return supported and kernels.library(Z) is not None and coordinates.matrix is not None


def iterate(
    coordinates: Coordinates,
    Z: Tensor,
    T: Tensor,
    lam: float,
    s: Activation,
    iterations: int,
    *,
    shrink_factor: float,
    cancellation: float,
    rounding_units: float,
    tolerance: float,
) -> Iterates:
    """Runs the iterations from x = 0; `solve_nonlinear` describes one iteration.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m) pre-activations, on the CPU.
        T: (..., N, m) target.
        lam: proximal weight.
        s: an activation that has a kernel.
        iterations: their number.
        shrink_factor: factor on a neuron's next step length after a rejected step.
        cancellation: least ||beta P - G||^2 of a direction, as a share of ||beta P||^2 + ||G||^2.
        rounding_units: assumed rounding error of a residual s(Z) - T, in units of eps ||T||.
        tolerance: relative error of a residual above which a neuron's answer is doubtful.
    """
    (*leading, N, m), r = Z.shape, coordinates.size
    matrix, library = coordinates.matrix, kernels.library(Z)
    assert matrix is not None
    assert library is not None
    groups, direct, kind = math.prod(leading), coordinates.direct, kernels.kind_of(s) or 0
    threads = torch.get_num_threads() if iterations * N * r * m >= _PARALLEL else 1
    work = kernels.workspace(Z.dtype, library.work_size(N, r, m, direct, threads, kind))
    x = Z.new_empty(*leading, m, r)
    Z, T, matrix = Z.contiguous(), T.contiguous(), matrix.contiguous()
    totals = _Totals()
    library.iterate(
        Z.data_ptr(), T.data_ptr(), matrix.data_ptr(), x.data_ptr(), work.data_ptr(), groups, N, r, m, direct,
        iterations, threads, kind, s.negative_slope or 0.0, lam, shrink_factor, cancellation, rounding_units,
        tolerance, totals,
    )  # fmt: skip
    start, f, norm, steps, gradient, doubtful, bound = totals
    return Iterates(x.mT, norm, start, f, gradient, steps / (iterations * groups * m), doubtful, bound)


_Totals = ctypes.c_double * 7  # METRICS of fused.c
