"""Layers as matrix products Z = A W^T + b: one class for each kind of layer, in a table that users can extend.

A geometry turns a layer's tensors into matrices: inputs A (g, N, n), outputs Z (g, N, m), weights (g, m, n), biases
(g, m). The leading g is for the groups of a convolution; a linear layer's matrices have no such axis. If the features'
operator has several row axes, so do the outputs: (g, B, P, m), with P positions of B samples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sibp.internals import own_parameters
from sibp.prox.operators import ConvolutionFeatures, DenseFeatures, FeatureOperator, Window


class Geometry(ABC):
    """One kind of layer, with a parameter `weight` and an optional `bias`.

    Subclasses implement `forward` and `features`. The other methods have defaults for a layer without groups whose
    output units are the last axis, and whose weight has the shape (m, ...).

    Args:
        module: a layer of the kind.
    """

    methods: ClassVar[tuple[str, ...]] = ("forward",)
    """Methods of the layer that compute its output; a subclass that overrides one of them is not supported."""

    rows_are_inputs: ClassVar[bool] = False
    """Whether A is the layer's input, up to its shape."""

    features_key: ClassVar[Hashable | None] = None
    """Layers with the same input and equal keys share their features and Gram matrix. None if they are never shared."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Resets `features_key` in subclasses that override `features`."""
        super().__init_subclass__(**options)
        if "features" in vars(cls) and "features_key" not in vars(cls):
            cls.features_key = None

    def __init__(self, module: nn.Module) -> None:
        del module

    def fits(self, module: nn.Module) -> bool:
        """Whether the layer's settings have not changed since this geometry was made."""
        del module
        return True

    def replaced_method(self, module: nn.Module) -> str | None:
        """The first of `methods` that was replaced on the instance; None if none was."""
        return next((method for method in self.methods if method in vars(module)), None)

    @abstractmethod
    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """The layer's output for the input x; W and b have the layer's own shapes."""

    @abstractmethod
    def features(self, x: Tensor, *, weight: bool, bias: bool) -> FeatureOperator:
        """Phi from the layer's input; `weight` and `bias` say which parameters are trained."""

    def prepare(self, x: Tensor) -> Tensor:
        """Preprocesses the input inside ordinary autograd; returns it unchanged by default."""
        return x

    def batch(self, x: Tensor) -> int:
        """Samples in x: the leading dimension, or 1 for a single unbatched vector."""
        return x.shape[0] if x.dim() > 1 else 1

    def outputs(self, z: Tensor, features: FeatureOperator) -> Tensor:
        """Z (..., *row_shape, m), with the rows of `features`, from a tensor z of the output's shape."""
        return z.reshape(*features.leading, *features.row_shape, z.shape[-1])

    def matrix(self, W: Tensor) -> Tensor:
        """The matrix (..., m, n) of the product, from the weight in the layer's own shape."""
        return W.flatten(1)

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of the method `matrix`: the weight in the layer's own shape, from (..., m, n)."""
        return matrix.reshape(shape)

    def vector(self, b: Tensor) -> Tensor:
        """The bias as (..., m)."""
        return b

    def arranged(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the output's gradient in the memory layout in which the layer's products are fastest."""
        return x, gradient

    def input_gradient(self, x: Tensor, gradient: Tensor, W: Tensor) -> Tensor:
        """The adjoint of the layer's map, applied to the output's gradient, in x's shape; by default, by autograd."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            z = self.forward(point, W.detach(), None)
        return torch.autograd.grad(z, point, gradient)[0]


Kind = TypeVar("Kind", bound=type[Geometry])
_geometries: dict[type[nn.Module] | str, type[Geometry] | None] = {}


def register_layer(*layers: type[nn.Module] | str) -> Callable[[Kind], Kind]:
    """A decorator that registers a `Geometry` for a class of layers, which are then updated proximally.

    Args:
        layers: classes of modules, or their full names, such as "transformers.pytorch_utils.Conv1D", for packages that
            may not be installed. Subclasses are included, unless they override `forward`.

    Raises:
        TypeError: if a layer is neither a class of modules nor a string, or the decorated class is not a `Geometry`.
    """
    for layer in layers:
        if not isinstance(layer, str) and not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise TypeError(f"register_layer: {layer!r} is neither a class of modules nor the full name of one.")

    def register(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Geometry)):
            raise TypeError(f"register_layer: {kind!r} is not a subclass of Geometry.")
        _geometries.update(dict.fromkeys(layers, kind))
        return kind

    return register


def own_class(module: nn.Module) -> type[nn.Module]:
    """The module's original class, if an optimizer has replaced it by a subclass (`sibp.capture.tap`)."""
    return vars(type(module)).get("_untapped", type(module))


def geometry_of(module: nn.Module) -> Geometry | None:
    """The geometry of a layer that can be updated proximally, or None.

    None for a subclass that overrides `forward`, and for a module whose weight or bias is not a plain parameter
    (weight normalisation, pruning, a buffer): such modules may compute something else.
    """
    if "weight" not in dict(module.named_parameters(recurse=False)) or has_other_bias(module):
        return None
    own = own_class(module)
    for layer in own.__mro__:
        for key in (layer, f"{layer.__module__}.{layer.__qualname__}"):
            if key in _geometries:
                kind = _geometries[key]
                if kind is None or any(getattr(own, m, None) is not getattr(layer, m, None) for m in kind.methods):
                    return None
                return kind(module)
    return None


def has_other_bias(module: nn.Module) -> bool:
    """Whether the layer's bias is not one of its parameters: it is a buffer, pruned or parametrized."""
    return "bias" not in own_parameters(module) and isinstance(getattr(module, "bias", None), Tensor)


_geometries[NonDynamicallyQuantizableLinear] = None  # attention reads the weights without calling forward


@register_layer(nn.Linear)
class LinearGeometry(Geometry):
    """`nn.Linear` on inputs of shape (*, n): all leading dimensions are rows."""

    rows_are_inputs = True
    features_key = "rows"

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Z in the layer's own shape, (*, m)."""
        return F.linear(x, self.matrix(W), b)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> DenseFeatures:
        """Phi from the layer's input, reshaped to A (N, n)."""
        return DenseFeatures(_rows(x), weight, bias)

    def outputs(self, z: Tensor, features: FeatureOperator) -> Tensor:
        """Z (N, m) from a tensor of the output's shape."""
        del features
        return _rows(z)

    def matrix(self, W: Tensor) -> Tensor:
        """The weight itself, (m, n)."""
        return W

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The matrix itself."""
        del shape
        return matrix

    def input_gradient(self, x: Tensor, gradient: Tensor, W: Tensor) -> Tensor:
        """D W in x's shape, from the output's gradient."""
        grad_x = _rows(gradient) @ self.matrix(W)
        return grad_x if x.dim() == 2 else grad_x.reshape(x.shape)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@register_layer("transformers.pytorch_utils.Conv1D")
class TransposedGeometry(LinearGeometry):
    """A linear layer whose weight is (n, m): Z = A W + b, as in GPT-2."""

    def matrix(self, W: Tensor) -> Tensor:
        """The weight's transpose: (m, n) from (n, m)."""
        return W.mT

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The matrix's transpose."""
        del shape
        return matrix.mT


@register_layer(nn.Conv1d, nn.Conv2d)
class ConvGeometry(Geometry):
    """`nn.Conv1d` and `nn.Conv2d`: a row of A is the patch under the kernel at one position of one sample.

    `torch.convolution` only pads with zeros, and equally on both sides. `prepare` applies any other padding, inside
    ordinary autograd.
    """

    methods = ("forward", "_conv_forward")

    def __init__(self, module: Any) -> None:
        self._settings = _settings(module)
        self.kernel, self.stride, self.dilation = (
            tuple(given) for given in (module.kernel_size, module.stride, module.dilation)
        )
        self.groups: int = module.groups
        self.pad_mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        explicit = isinstance(module.padding, str) or module.padding_mode != "zeros"
        self.explicit_padding: tuple[int, ...] = _padding_pairs(module) if explicit else ()
        padding: Any = (0,) * len(self.kernel) if explicit else module.padding
        self.padding: tuple[int, ...] = tuple(padding)

    def fits(self, module: nn.Module) -> bool:
        """Whether stride, padding, dilation and groups have not changed."""
        return self._settings == _settings(module)

    def prepare(self, x: Tensor) -> Tensor:
        """Applies the padding that the convolution does not, to x ([B,] channels, *positions)."""
        return F.pad(x, self.explicit_padding, mode=self.pad_mode) if any(self.explicit_padding) else x

    def batch(self, x: Tensor) -> int:
        """Samples in x: the leading dimension, or 1 for a single unbatched image."""
        return x.shape[0] if x.dim() == len(self.kernel) + 2 else 1

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Z in the layer's own shape, ([B,] channels, *positions)."""
        convolve = F.conv1d if len(self.kernel) == 1 else F.conv2d
        return convolve(x, W, b, self.stride, self.padding, self.dilation, self.groups)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> FeatureOperator:
        """The patches of the layer's input; an explicit matrix A (g, N, n) if Phi has no more rows than columns."""
        x = self._batched(x)
        patches = ConvolutionFeatures(x if self._is_2d else x.unsqueeze(-1), self._window, weight, bias)
        return patches.dense() if patches.rows <= patches.size else patches

    def outputs(self, z: Tensor, features: FeatureOperator) -> Tensor:
        """Z (g, B, P, m), or (g, N, m) for an explicit matrix, from z of the output's shape; m = channels/g."""
        rows = self._batched(z).flatten(2).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2)
        return rows.reshape(self.groups, *features.row_shape, rows.shape[-1])

    def matrix(self, W: Tensor) -> Tensor:
        """The weight as a matrix for each group, (g, m, n)."""
        return W.flatten(1).unflatten(0, (self.groups, -1))

    def vector(self, b: Tensor) -> Tensor:
        """The bias by groups, (g, m)."""
        return b.unflatten(0, (self.groups, -1))

    def arranged(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Both tensors in channels-last order, if they are on a CPU and their channels are not multiples of 16.

        In channels-first order, the CPU library pads the channels with zeros to a multiple of 16, which takes longer
        than copying both tensors.
        """
        if x.dim() != 4 or not x.is_cpu or (x.shape[1] % 16 == 0 and gradient.shape[1] % 16 == 0):
            return x, gradient
        last = torch.channels_last
        return x.contiguous(memory_format=last), gradient.contiguous(memory_format=last)

    def input_gradient(self, x: Tensor, gradient: Tensor, W: Tensor) -> Tensor:
        """The transposed convolution with weights W, applied to the output's gradient: a tensor of x's shape."""
        batched, z, none = self._batched(x), self._batched(gradient), [0] * len(self.kernel)
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            z, batched, W, None, self.stride, self.padding, self.dilation, False, none, self.groups,
            (True, False, False),
        )  # fmt: skip
        return grad_x.reshape(x.shape)

    @property
    def _is_2d(self) -> bool:
        return len(self.kernel) == 2

    @property
    def _window(self) -> Window:
        """The settings in two dimensions; a sequence is an image with one column."""
        kernel, stride, padding, dilation = (
            given if self._is_2d else (*given, one)
            for given, one in zip((self.kernel, self.stride, self.padding, self.dilation), (1, 1, 0, 1), strict=True)
        )
        return Window(kernel, stride, padding, dilation, self.groups)

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == len(self.kernel) + 2 else x.unsqueeze(0)


def _settings(conv: Any) -> tuple[Any, ...]:
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


def _padding_pairs(conv: Any) -> tuple[int, ...]:
    """A convolution's padding as `F.pad` takes it: (before, after) for each axis, from the last axis to the first."""
    if conv.padding == "valid":
        return (0, 0) * len(conv.kernel_size)
    if conv.padding == "same":  # if the total is odd, the larger part is after the data
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(p, p) for p in conv.padding]
    return tuple(p for pair in reversed(pairs) for p in pair)
