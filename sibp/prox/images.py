"""What conjugate gradients do with images: pre-activations Z, and how they change along a direction.

Images are the large arrays of a round (a number for each sample, or each sample's position, and neuron), so every pass
over them counts. `Images` has the passes as torch operations, for any activation and device; `CompiledImages` has each
as one pass of C code (`kernels/images.c`) over the layout that convolutions give and take.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox import kernels
from sibp.prox.numbers import Number, number
from sibp.prox.operators import FeatureOperator

_PARALLEL = 100_000  # numbers in an image from which several threads are worth waking


class Images:
    """Z on its way to the target T, with E = (s(Z) - T) s'(Z), and the image KD of the direction.

    Sums are one number an output unit, (..., m), over all rows; so are step lengths.
    """

    def __init__(self, features: FeatureOperator, Z: Tensor, T: Tensor, s: Activation) -> None:
        """Begins with KD = 0; Z and T are left as they are."""
        self.features, self.Z, self.T, self.s = features, Z, T, s
        self.E = self.KD = torch.zeros_like(Z)

    def residual(self) -> Tensor:
        """||s(Z) - T||^2; sets E."""
        difference = self.s.value(self.Z) - self.T
        self.E = difference * self.s.slope(self.Z)
        return self.features.over_rows(difference.square())

    def redirect(self, beta: Tensor, KG: Tensor) -> Tensor:
        """KD <- beta KD - KG; the curvature ||s'(Z) KD||^2. KG may be overwritten."""
        self.KD = self.features.spread(beta) * self.KD - KG
        return self.features.over_rows((self.s.slope(self.Z) * self.KD).square())

    def attempt(self, t: Tensor) -> Tensor:
        """||s(Z + t KD) - T||^2."""
        return self.features.over_rows((self.s.value(self._at(t)) - self.T).square())

    def move(self, t: Tensor) -> None:
        """Z <- Z + t KD where t is not 0; sets E."""
        self.Z = torch.where(self.features.spread(t != 0), self._at(t), self.Z)
        self.E = (self.s.value(self.Z) - self.T) * self.s.slope(self.Z)

    def _at(self, t: Tensor) -> Tensor:
        return self.Z + self.features.spread(t) * self.KD


class CompiledImages(Images):
    """The same for rows along two axes, in memory of its own, (B, g m, P) as convolutions have it."""

    def __init__(self, features: FeatureOperator, Z: Tensor, T: Tensor, s: Activation) -> None:
        """Takes a copy of Z; see `usable`."""
        self.features, self.s = features, s
        self._order = Z.permute(1, 0, 3, 2)  # (B, g, m, P)
        B, g, m, P = self._order.shape
        threads = torch.get_num_threads() if Z.numel() >= _PARALLEL else 1
        self._shape = _shape_type(Z.dtype)(
            B=B, M=g * m, P=P, threads=threads, kind=kernels.kind_of(s), a=s.negative_slope or 0.0
        )
        self._sums = Z.new_empty(g, m)
        self.Z = self._laid_out(Z.clone(memory_format=torch.preserve_format))
        self.T = self._laid_out(T)
        self.KD = self._laid_out(torch.zeros_like(self.Z))
        self.E = self._laid_out(torch.empty_like(self.Z))

    @staticmethod
    def usable(features: FeatureOperator, Z: Tensor, s: Activation) -> bool:
        """Whether there is compiled code: for rows as of a convolution, activations with a kernel, CPUs."""
        as_convolutions = len(features.leading) == 1 and len(features.row_shape) == 2
        return as_convolutions and kernels.kind_of(s) is not None and kernels.library(Z) is not None

    def residual(self) -> Tensor:
        """||s(Z) - T||^2; sets E."""
        return self._sums_of("residual", self.Z, self.T, self.E)

    def redirect(self, beta: Tensor, KG: Tensor) -> Tensor:
        """KD <- beta KD - KG; the curvature ||s'(Z) KD||^2. E is to come in the place of KG."""
        self.E = self._laid_out(KG)
        return self._sums_of("redirect", self.Z, self.E, beta.contiguous(), self.KD)

    def attempt(self, t: Tensor) -> Tensor:
        """||s(Z + t KD) - T||^2."""
        return self._sums_of("attempt", self.Z, self.T, self.KD, t.contiguous())

    def move(self, t: Tensor) -> None:
        """Z <- Z + t KD where t is not 0; sets E."""
        self._run("move", self.Z, self.T, self.KD, t.contiguous(), self.E)

    def _laid_out(self, image: Tensor) -> Tensor:
        """The image (g, B, P, m) with its numbers in the order of (B, g, m, P)."""
        return image.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)

    def _sums_of(self, name: str, *arrays: Tensor) -> Tensor:
        self._run(name, *arrays, self._sums.zero_())
        return self.features.total(self._sums.clone())

    def _run(self, name: str, *arrays: Tensor) -> None:
        library = kernels.library(self.Z)
        assert library is not None
        places = (ctypes.c_void_p(array.data_ptr()) for array in arrays)
        getattr(library, name)(ctypes.byref(self._shape), *places)


def images_of(features: FeatureOperator, Z: Tensor, T: Tensor, s: Activation) -> Images:
    """The images of a layer's neurons, in the quickest form there is for them.

    Args:
        features: of the layer.
        Z: (..., N, m), or (g, B, P, m) for patches: pre-activations.
        T: the target of s(Z), of the same shape.
        s: the layer's activation.
    """
    kind = CompiledImages if CompiledImages.usable(features, Z, s) else Images
    return kind(features, Z, T, s)


def share_of_nonzeros(t: Tensor) -> Number:
    """The share of a tensor's numbers that are not 0.

    Args:
        t: of any shape; 0 for one without numbers.
    """
    if t.numel() == 0:
        return 0.0
    packed = t.permute(sorted(range(t.dim()), key=t.stride, reverse=True))
    library = kernels.library(t) if packed.is_contiguous() else None
    if library is None:
        return number(t.sign().abs_().sum()) / t.numel()  # three times faster than counting
    library.nonzeros.restype = ctypes.c_long
    return library.nonzeros(ctypes.c_void_p(t.data_ptr()), ctypes.c_long(t.numel())) / t.numel()


@cache
def _shape_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    """`Shape` of images.c."""

    class Shape(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_long) for name in ("B", "M", "P", "threads", "kind")),
            ("a", kernels.C_TYPES[dtype]),
        )

    return Shape
