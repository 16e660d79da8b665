"""How a layer is a matrix product Z = A W' + b.

A geometry turns a layer's tensors into matrices: inputs A (g, N, n), outputs Z (g, N, m), weights (g, m, n), biases
(g, m). The leading g is for the groups of a convolution; a linear layer's matrices are without. A convolution with
more patches than a patch has numbers leaves A as `Patches`, and its outputs with two axes for rows, (g, B, P, m).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_input, conv2d_input
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sibp.prox.coordinates import AnyFeatures
from sibp.prox.features import Features
from sibp.prox.patches import Patches
from sibp.prox.window import Window


class LinearGeometry:
    """`nn.Linear` on inputs of shape (*, n): all leading dimensions are rows."""

    groups = 1
    is_linear = True

    def prepare(self, x: Tensor) -> Tensor:
        """What has to happen to the input (*, n) inside ordinary autograd, before the layer: nothing."""
        return x

    def batch(self, x: Tensor) -> int:
        """Samples in x: the leading dimension, or 1 for a single unbatched vector."""
        return x.shape[0] if x.dim() > 1 else 1

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Z in the layer's own shape, (*, m)."""
        return F.linear(x, W, b)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> Features:
        """A (N, n) from the layer's input, with what moves."""
        return Features(_matrix(x), weight, bias)

    def outputs(self, z: Tensor, features: AnyFeatures) -> Tensor:
        """Z (N, m) from a tensor of the output's shape."""
        del features
        return _matrix(z)

    def input_gradient(self, x: Tensor, gradient: Tensor, W: Tensor) -> Tensor:
        """D W in x's shape, from the output's gradient."""
        return (_matrix(gradient) @ W).reshape(x.shape)


def _matrix(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@dataclass(frozen=True)
class ConvGeometry:
    """`nn.Conv1d` and `nn.Conv2d`: a row of A is the patch under the kernel at one position of one sample.

    Padding that `torch.convolution` does not do itself (modes other than zeros, an odd "same") is applied by
    `prepare`, in ordinary autograd.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pad_mode: str
    pad_ahead: tuple[int, ...]
    is_linear: ClassVar[bool] = False

    @classmethod
    def of(cls, module: nn.Conv1d | nn.Conv2d) -> "ConvGeometry":
        """Reads the module's settings."""
        ahead: tuple[int, ...] = ()
        padding = module.padding
        if isinstance(padding, str) or module.padding_mode != "zeros":
            ahead = tuple(module._reversed_padding_repeated_twice)
            padding = (0,) * len(module.kernel_size)
        return cls(
            tuple(module.kernel_size),
            tuple(module.stride),
            tuple(padding),
            tuple(module.dilation),
            module.groups,
            "constant" if module.padding_mode == "zeros" else module.padding_mode,
            ahead,
        )

    def prepare(self, x: Tensor) -> Tensor:
        """Pads x, ([B,] channels, *positions), where the convolution itself will not."""
        return F.pad(x, self.pad_ahead, mode=self.pad_mode) if any(self.pad_ahead) else x

    def batch(self, x: Tensor) -> int:
        """Samples in x: the leading dimension, or 1 for a single unbatched image."""
        return x.shape[0] if x.dim() == len(self.kernel) + 2 else 1

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Z in the layer's own shape, ([B,] channels, *positions)."""
        convolve = F.conv1d if len(self.kernel) == 1 else F.conv2d
        return convolve(x, W, b, self.stride, self.padding, self.dilation, self.groups)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> AnyFeatures:
        """The patches of the layer's input; as a matrix A (g, N, n) where there are so few that N x N is small."""
        x = self._batched(x)
        patches = Patches(x if self._is_2d else x.unsqueeze(-1), self._window, weight, bias)
        return patches.written_out() if patches.rows <= patches.size else patches

    def outputs(self, z: Tensor, features: AnyFeatures) -> Tensor:
        """Z (g, B, P, m) or (g, N, m), as `features` are, from a tensor of the output's shape; m = channels/g."""
        rows = self._batched(z).flatten(2).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2)
        return rows if isinstance(features, Patches) else rows.flatten(1, 2)

    def input_gradient(self, x: Tensor, gradient: Tensor, W: Tensor) -> Tensor:
        """The convolution's transpose with weights W applied to the output's gradient, in x's shape."""
        transpose: Any = conv2d_input if self._is_2d else conv1d_input
        batched, z = self._batched(x), self._batched(gradient)
        sent = transpose(batched.shape, W, z, self.stride, self.padding, self.dilation, self.groups)
        return sent.reshape(x.shape)

    @property
    def _is_2d(self) -> bool:
        return len(self.kernel) == 2

    @property
    def _window(self) -> Window:
        """The settings of two dimensions; a sequence is an image of one column."""
        kernel, stride, padding, dilation = (
            given if self._is_2d else (*given, one)
            for given, one in zip((self.kernel, self.stride, self.padding, self.dilation), (1, 1, 0, 1), strict=True)
        )
        return Window(kernel, stride, padding, dilation, self.groups)

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == len(self.kernel) + 2 else x.unsqueeze(0)


Geometry = LinearGeometry | ConvGeometry


def geometry_of(module: nn.Module) -> Geometry | None:
    """The geometry of a layer that can be updated proximally, or None.

    Only the layers' own `forward` is understood: a subclass with another one, or a module whose weight is not a plain
    parameter (weight normalisation, pruning), may compute something else.
    """
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return None
    if isinstance(module, NonDynamicallyQuantizableLinear):  # attention reads its weights past its forward
        return None
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return LinearGeometry()
    for kind in (nn.Conv1d, nn.Conv2d):
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return ConvGeometry.of(module)
    return None
