"""How a layer is a matrix product Z = A W' + b: the only place that knows about convolutions.

A geometry turns a layer's tensors into matrices and back: inputs A (g, N, n), outputs Z (g, N, m), weights (g, m, n),
biases (g, m). The leading g is for the groups of a convolution; a linear layer's matrices are without.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_input, conv2d_input
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sibp.prox.coordinates import Features


class LinearGeometry:
    """`nn.Linear` on inputs of shape (*, n): all leading dimensions are rows."""

    groups = 1
    is_linear = True

    def prepare(self, x: Tensor) -> Tensor:
        """What has to happen to the input inside ordinary autograd, before the layer: nothing."""
        return x

    def batch(self, x: Tensor) -> int:
        """Samples in x: the leading dimension, or 1 for a single unbatched vector."""
        return x.shape[0] if x.dim() > 1 else 1

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Z in the layer's own shape, (*, m)."""
        return F.linear(x, W, b)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> Features:
        """A (N, n) from the layer's input, with what moves."""
        return Features(self.outputs(x), weight, bias)

    def outputs(self, z: Tensor) -> Tensor:
        """Z (N, m) from a tensor of the output's shape."""
        return z if z.dim() == 2 else z.reshape(math.prod(z.shape[:-1]), z.shape[-1])

    def input_gradient(self, x: Tensor, D: Tensor, W: Tensor) -> Tensor:
        """D W in x's shape, D (N, m)."""
        return (D @ W).reshape(x.shape)


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
        """Pads x where the convolution itself will not."""
        return F.pad(x, self.pad_ahead, mode=self.pad_mode) if any(self.pad_ahead) else x

    def batch(self, x: Tensor) -> int:
        """Samples in x: the leading dimension, or 1 for a single unbatched image."""
        return x.shape[0] if x.dim() == len(self.kernel) + 2 else 1

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Z in the layer's own shape, ([B,] channels, *positions)."""
        convolve = F.conv1d if len(self.kernel) == 1 else F.conv2d
        return convolve(x, W, b, self.stride, self.padding, self.dilation, self.groups)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> Features:
        """A (g, N, n) from the layer's input: N = B * positions patches of n = channels/g * kernel entries.

        In memory a feature's N numbers lie together, the column of ones after the others: a patch matrix is large, and
        is written once.
        """
        x, as_2d = self._batched(x), len(self.kernel) == 2
        kernel, stride, padding, dilation = (
            pair if as_2d else (one, *pair)
            for one, pair in zip((1, 1, 0, 1), (self.kernel, self.stride, self.padding, self.dilation), strict=True)
        )
        x = x if as_2d else x.unsqueeze(-2)
        if any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        batch, channels = x.shape[:2]
        out = [
            (size - dil * (k - 1) - 1) // step + 1
            for size, k, step, dil in zip(x.shape[2:], kernel, stride, dilation, strict=True)
        ]
        to_image, to_channel, to_row, to_column = x.stride()
        own = channels // self.groups
        patches = x.as_strided(
            (self.groups, own, *kernel, batch, *out),
            (
                own * to_channel, to_channel, dilation[0] * to_row, dilation[1] * to_column,
                to_image, stride[0] * to_row, stride[1] * to_column,
            ),
            x.storage_offset(),
        )  # fmt: skip
        n, N = own * math.prod(kernel), batch * math.prod(out)
        phi = x.new_empty(self.groups, n + 1, N)
        phi[:, :n].view(patches.shape).copy_(patches)
        phi[:, n] = 1
        return Features(phi[:, :n].mT, weight, bias, with_ones=phi.mT)

    def outputs(self, z: Tensor) -> Tensor:
        """Z (g, N, m) from a tensor of the output's shape, m = channels/g."""
        return self._rows(self._batched(z).flatten(2))

    def input_gradient(self, x: Tensor, D: Tensor, W: Tensor) -> Tensor:
        """The convolution's transpose applied to D (g, N, m) with weights W, in x's shape."""
        batched = self._batched(x)
        out = [
            (size + 2 * pad - dil * (k - 1) - 1) // step + 1
            for size, k, step, pad, dil in zip(
                batched.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        z = D.mT.reshape(self.groups, D.shape[-1], batched.shape[0], -1).permute(2, 0, 1, 3)
        transpose: Any = conv1d_input if len(self.kernel) == 1 else conv2d_input
        gradient = transpose(
            batched.shape,
            W,
            z.reshape(batched.shape[0], -1, *out),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return gradient.reshape(x.shape)

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == len(self.kernel) + 2 else x.unsqueeze(0)

    def _rows(self, columns: Tensor) -> Tensor:
        """(B, g * c, positions) -> (g, B * positions, c), in memory (g, c, B * positions): whole images are copied."""
        batch, channels, positions = columns.shape
        return (
            columns.reshape(batch, self.groups, channels // self.groups, positions)
            .permute(1, 2, 0, 3)
            .reshape(self.groups, channels // self.groups, batch * positions)
            .mT
        )


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
