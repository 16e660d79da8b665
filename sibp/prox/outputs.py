"""The output arrays of conjugate gradients: pre-activations Z, and their change along a direction.

These are the largest arrays of an iteration: each has one number per neuron and sample, or per neuron and position of a
sample. So the number of passes over them matters. `Outputs` implements the passes as torch operations, for any
activation and device. `CompiledOutputs` implements them in C (`kernels/outputs.c`), for the layout in which
convolutions are fastest.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox import kernels
from sibp.prox.operators import FeatureOperator
from sibp.prox.scalars import Scalar, scalar

_PARALLEL = 100_000  # numbers in an array above which several threads pay off


@dataclass(frozen=True)
class Shifted:
    """The target s(Z) - eta D before its evaluation, which is deferred because a convolution's target is a large array.

    Attributes:
        D: error signal on s(Z), of Z's shape.
        eta: the step on the neurons.
    """

    D: Tensor
    eta: float

    def evaluate(self, Z: Tensor, s: Activation) -> Tensor:
        """The target for pre-activations Z."""
        value = s.value(Z)
        if value.is_cpu and value.data_ptr() != Z.data_ptr():  # in place: lowers the peak of memory use
            return value.sub_(self.D, alpha=self.eta)
        return torch.sub(value, self.D, alpha=self.eta)


Target = Tensor | Shifted


class Outputs:
    """Z at the present iterate, E = (s(Z) - T) s'(Z), and the forward product KP of the direction P.

    Step lengths and sums over rows have one number per output unit, (..., m).

    Attributes:
        features: the features that the products use.
        squared_target: ||T||^2, (..., m); set by `residual`.
    """

    squared_target: Tensor

    def __init__(self, features: FeatureOperator, Z: Tensor, T: Target, s: Activation) -> None:
        """Starts with KP = 0; Z and T are not modified."""
        self.features, self.Z, self.s = features, Z, s
        self.T = T.evaluate(Z, s) if isinstance(T, Shifted) else T
        self.E = self.KP = torch.zeros_like(Z)

    def residual(self) -> Tensor:
        """||s(Z) - T||^2; sets E."""
        difference = self.s.value(self.Z) - self.T
        self.E = difference * self.s.slope(self.Z)
        self.squared_target = self.features.over_rows(self.T.square())
        return self.features.over_rows(difference.square())

    def take_E(self) -> Tensor:  # noqa: N802 (the name above)
        """E; this object may free it afterwards."""
        return self.E

    def redirect(self, beta: Tensor, KG: Tensor) -> Tensor:
        """KP <- beta KP - KG; returns the curvature ||s'(Z) KP||^2. May overwrite KG."""
        self.KP = self.features.spread(beta) * self.KP - KG
        return self.features.over_rows((self.s.slope(self.Z) * self.KP).square())

    def attempt(self, t: Tensor, last: bool) -> Tensor:
        """||s(Z + t KP) - T||^2; `last` says that no `move` will follow."""
        del last
        return self.features.over_rows((self.s.value(self._at(t)) - self.T).square())

    def move(self, t: Tensor) -> None:
        """Z <- Z + t KP where t is not 0; sets E. t is the attempted step length, or 0 where it was rejected."""
        self.Z = torch.where(self.features.spread(t != 0), self._at(t), self.Z)
        self.E = (self.s.value(self.Z) - self.T) * self.s.slope(self.Z)

    def _at(self, t: Tensor) -> Tensor:
        return self.Z + self.features.spread(t) * self.KP


class CompiledOutputs(Outputs):
    """`Outputs` in C, for rows along two axes.

    Its own arrays are (B, P, g m), since convolutions are fastest with units last. Each pass does as much as possible
    while numbers are in cache: an attempt also computes E at the trial point, in case it is accepted, and Z is updated
    when the next direction is formed.
    """

    def __init__(self, features: FeatureOperator, Z: Tensor, T: Target, s: Activation) -> None:
        """Takes inputs that are `usable`; Z and T are copied when `residual` is called."""
        self.features, self.s, self.Z, self._target = features.units_last(), s, Z, T
        g, B, P, m = Z.shape
        threads = torch.get_num_threads() if Z.numel() >= _PARALLEL else 1
        self._shape = _shape_type(Z.dtype)(
            N=B * P, M=g * m, threads=threads, kind=kernels.kind_of(s), a=s.negative_slope or 0.0
        )
        self._size = self._library.outputs_size(B * P, g * m, B)
        self._sums = Z.new_empty(2, g, m, dtype=torch.float64)
        self.KP = Z.new_zeros(()).expand(Z.shape)
        self._has_direction, self._tried, self._taken = False, self._sums, self._sums

    @staticmethod
    def usable(features: FeatureOperator, Z: Tensor, s: Activation) -> bool:
        """Whether compiled code supports the inputs: a convolution's rows, an activation with a kernel, on a CPU."""
        convolutional = len(features.leading) == 1 and len(features.row_shape) == 2 and Z.shape[-1] > 0
        return convolutional and kernels.kind_of(s) is not None and kernels.library(Z) is not None

    def residual(self) -> Tensor:
        """||s(Z) - T||^2; sets E."""
        target = self._target
        shift, T_or_D = (target.eta, target.D) if isinstance(target, Shifted) else (None, target)
        (Z, transposed_Z), (T, transposed_T) = _with_layout(self.Z), _with_layout(T_or_D)
        self.Z, self.T, self.E = (self._empty() for _ in range(3))
        arguments = (Z.data_ptr(), transposed_Z, T.data_ptr(), transposed_T, shift is not None, shift or 0.0)
        self._run("begin", Z.shape[1], *arguments, self.Z, self.T, self.E)
        self.squared_target = self._read_sums(1)
        return self._read_sums(0)

    def take_E(self) -> Tensor:  # noqa: N802 (the name above)
        """E, whose memory is released when the next E has been allocated."""
        E = self.E
        if self._has_direction:
            del self.E
        return E

    def redirect(self, beta: Tensor, KG: Tensor) -> Tensor:
        """KP <- beta KP - KG; returns the curvature ||s'(Z) KP||^2. Reuses the memory of KG for KP or E."""
        KG = self._units_last(KG)
        if self._has_direction:
            self._run("redirect", self.Z, KG, self._taken.contiguous(), beta.contiguous(), self.KP)
            self.E = KG
        else:
            self.KP, self._has_direction = KG, True
            self._run("direct", self.Z, self.KP)
        return self._read_sums(0)

    def attempt(self, t: Tensor, last: bool) -> Tensor:
        """||s(Z + t KP) - T||^2; `last` says that no `move` will follow."""
        self._tried = t
        self._run_attempt(t, None if last else self.E)
        return self._read_sums(0)

    def move(self, t: Tensor) -> None:
        """Z <- Z + t KP where t is not 0; E has its new value at once, Z after the next `redirect`."""
        self._taken = t
        if not torch.equal(t, self._tried):
            self._run_attempt(t, self.E)

    def _run_attempt(self, t: Tensor, E: Tensor | None) -> None:
        self._run("attempt", self.Z, self.T, self.KP, t.contiguous(), E)

    @property
    def _library(self) -> kernels.Kernels:
        library = kernels.library(self.Z)
        assert library is not None
        return library

    def _empty(self) -> Tensor:
        """Memory for an array, as (g, B, P, m)."""
        g, B, P, m = self.Z.shape
        return self.Z.new_empty(B, P, g, m).permute(2, 0, 1, 3)

    def _units_last(self, array: Tensor) -> Tensor:
        """The array (g, B, P, m) stored in the order (B, P, g, m)."""
        return array.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)

    def _read_sums(self, index: int) -> Tensor:
        return self.features.total(self._sums[index].to(self.Z.dtype, copy=True))

    def _run(self, name: str, *arguments: Tensor | float | None) -> None:
        work = kernels.workspace(self.Z.dtype, self._size)
        passed = (value.data_ptr() if isinstance(value, Tensor) else value for value in arguments)
        getattr(self._library, name)(ctypes.addressof(self._shape), *passed, work.data_ptr(), self._sums.data_ptr())


def _with_layout(array: Tensor) -> tuple[Tensor, bool]:
    """The array (g, B, P, m), stored contiguously as (B, P, g, m) or (B, g, m, P), and whether it is the latter."""
    if array.permute(1, 2, 0, 3).is_contiguous():
        return array, False
    return array.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2), True


def outputs_of(features: FeatureOperator, Z: Tensor, T: Target, s: Activation) -> Outputs:
    """A layer's outputs, in the fastest form that supports them.

    Args:
        features: of the layer.
        Z: (..., N, m), or (g, B, P, m) for patches: pre-activations.
        T: the target of s(Z), of the same shape.
        s: the layer's activation.
    """
    kind = CompiledOutputs if CompiledOutputs.usable(features, Z, s) else Outputs
    return kind(features, Z, T, s)


def share_of_nonzeros(t: Tensor) -> Scalar:
    """The fraction of nonzero entries.

    Args:
        t: of any shape; an empty tensor gives 0.
    """
    if t.numel() == 0:
        return 0.0
    packed = t.permute(sorted(range(t.dim()), key=t.stride, reverse=True))
    library = kernels.library(t) if packed.is_contiguous() else None
    if library is None:
        return scalar(t.sign().abs_().sum()) / t.numel()  # three times faster than counting
    threads = torch.get_num_threads() if t.numel() >= _PARALLEL else 1
    return library.nonzeros(t.data_ptr(), t.numel(), threads) / t.numel()


@cache
def _shape_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    """`Shape` of outputs.c."""

    class Shape(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_long) for name in ("N", "M", "threads", "kind")),
            ("a", kernels.C_TYPES[dtype]),
        )

    return Shape
