"""Features of a convolution: Phi's rows are the patches under the kernel, and are never materialized.

Phi V is a convolution, Phi^T E the convolution's weight gradient, and Phi^T Phi a sum of products of the input's pixels
(`sibp.prox.operators.patches`). Arrays with a number for each row and output unit keep the layout of the layer's
output, as (g, B, P, m): g groups, and N = B P rows, for P positions of each of B samples.
"""

import math
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sibp.prox import kernels
from sibp.prox.operators.base import FeatureOperator
from sibp.prox.operators.dense import DenseFeatures
from sibp.prox.operators.patches import gram_products, numbers_copied, patch_gram
from sibp.prox.operators.window import Pair, Window


class ConvolutionFeatures(FeatureOperator):
    """Phi of a convolution.

    Args:
        x: (B, g c, rows, columns) the layer's input.
        window: of the convolution.
        weight: whether W is trained.
        bias: whether b is trained.
    """

    def __init__(self, x: Tensor, window: Window, weight: bool = True, bias: bool = True) -> None:
        self.window = window
        self.channels = x.shape[1] // window.groups
        n = self.channels * math.prod(window.kernel)
        P = math.prod(window.positions(*x.shape[2:]))
        super().__init__(x, n, (x.shape[0], P), (window.groups,), weight=weight, bias=bias)

    @cached_property
    def positions(self) -> Pair:
        """Rows and columns of the output."""
        return self.window.positions(*self.x.shape[2:])

    def units_last(self) -> Self:
        """These features with the input in channels-last order; outputs then have that order, too."""
        return self._changed(x=self.x.contiguous(memory_format=torch.channels_last))

    def gram(self) -> Tensor:
        """Phi^T Phi, (g, size, size)."""
        gram = self.x.new_empty(self.groups, self.size, self.size)
        n = self.size - self.bias
        if self.weight:
            gram[:, :n, :n] = patch_gram(self.x, self.window)
        if self.bias:
            gram[:, n, n] = self.rows
        if self.weight and self.bias:
            gram[:, :n, n] = gram[:, n, :n] = self._sums(self.x)
        return gram

    def squared_norm(self) -> Tensor:
        """||Phi||^2, (g,)."""
        squares = self._sums(self.x.square()).sum(-1) if self.weight else self.x.new_zeros(self.groups)
        return squares + self.rows * self.bias

    def rmatmat(self, E: Tensor) -> Tensor:
        """Phi^T E, (g, size, m), from E (g, B, P, m)."""
        m = E.shape[-1]
        W = self.x.new_empty(self.groups * m, self.channels, *self.window.kernel)
        z = E.permute(1, 0, 3, 2).reshape(len(self.x), len(W), *self.positions)
        window = self.window
        _, dW, db = torch.ops.aten.convolution_backward(
            z, self.x, W, [len(W)] if self.bias else None, window.stride, window.padding, window.dilation,
            False, (0, 0), window.groups, (False, self.weight, self.bias),
        )  # fmt: skip
        parts = ([dW.reshape(self.groups, m, -1).mT] if self.weight else []) + (
            [db.view(self.groups, 1, m)] if self.bias else []
        )
        return parts[0] if len(parts) == 1 else torch.cat(parts, -2)

    def matmat(self, V: Tensor) -> Tensor:
        """Phi V, (g, B, P, m), from V (g, size, m)."""
        g, size, m = V.shape
        if not self.weight:
            return V.unsqueeze(1).expand(g, len(self.x), math.prod(self.positions), m)
        b = V[:, -1].flatten() if self.bias else None
        W = V[:, : size - self.bias].mT.reshape(g * m, self.channels, *self.window.kernel)
        window = self.window
        z = F.conv2d(self.x, W, b, window.stride, window.padding, window.dilation, g)
        return self.in_rows(z)

    def materialize(self) -> Tensor:
        """Phi, (g, N, size)."""
        return self.dense().materialize()

    def dense(self) -> DenseFeatures:
        """These features with materialized patches."""
        window = self.window
        patches = F.unfold(self.x, window.kernel, window.dilation, window.padding, window.stride)
        A = patches.unflatten(1, (self.groups, self.inputs)).permute(1, 0, 3, 2).flatten(1, 2)
        return DenseFeatures(A, self.weight, self.bias)

    def in_rows(self, z: Tensor) -> Tensor:
        """(g, B, P, m) from a tensor of the output's shape, (B, g m, rows, columns)."""
        return z.flatten(2).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2)

    def gram_products(self) -> list[tuple[int, int, int]]:
        """The sizes of the products of `patch_gram`, and of the sums over positions, for each group."""
        return [*gram_products(self.window, self._image, self._is_compiled), (1, self.row_shape[1], self.inputs)]

    def numbers_copied(self) -> float:
        """Numbers that are read and written to prepare the products of `gram`."""
        return numbers_copied(self.window, self._image, self._is_compiled)

    @property
    def _image(self) -> tuple[int, int, int, int]:
        B, channels, rows, columns = self.x.shape
        return B, channels, rows, columns

    @property
    def _is_compiled(self) -> bool:
        """Whether kernels form the Gram matrix; a meta tensor stands for one on the CPU."""
        return kernels.available() if self.x.is_meta else kernels.library(self.x) is not None

    def _sums(self, x: Tensor) -> Tensor:
        """For each entry of the kernel, the sum of the inputs under it over all positions, (g, n)."""
        # Sum in memory order: for channels-last images, `x.sum(0)` takes fifteen times as long.
        last = x.is_contiguous(memory_format=torch.channels_last)
        image = x.permute(0, 2, 3, 1).sum(0).permute(2, 0, 1) if last else x.sum(0)
        ones = ConvolutionFeatures(image.unsqueeze(0), self.window, bias=False)
        return ones.rmatmat(x.new_ones(self.groups, 1, self.row_shape[1], 1)).squeeze(-1)
