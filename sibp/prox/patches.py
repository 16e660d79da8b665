"""Features of a convolution: Phi's rows are the patches under the kernel, and are never written out.

Phi V is a convolution, Phi'E the convolution's weight gradient, and Phi'Phi follows from products of the image's rows.
Images of the neurons (N x m) keep the layout of the layer's output, as (g, B, P, m): N = B P rows, P positions of
each of B samples, and the g groups of the convolution in front.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sibp.prox.features import ALONE, Features, Sharing
from sibp.prox.window import Pair, Window, patch_gram


@dataclass(frozen=True)
class Patches:
    """Phi of a convolution; see `sibp.prox.features.Features` for what it offers.

    Attributes:
        x: (B, g c, rows, columns) the layer's input.
        window: of the convolution.
        weight: whether W moves.
        bias: whether b moves.
        sharing: where rows and neurons are.
    """

    x: Tensor
    window: Window
    weight: bool = True
    bias: bool = True
    sharing: Sharing = ALONE

    @cached_property
    def positions(self) -> Pair:
        """Rows and columns of the output."""
        return self.window.positions(*self.x.shape[2:])

    @property
    def groups(self) -> int:
        """Groups of channels, g."""
        return self.window.groups

    @property
    def channels(self) -> int:
        """c, inputs of a group."""
        return self.x.shape[1] // self.groups

    @property
    def rows(self) -> int:
        """N, the batch times the positions."""
        return self.x.shape[0] * math.prod(self.positions)

    @property
    def inputs(self) -> int:
        """n, numbers in a patch."""
        return self.channels * math.prod(self.window.kernel)

    @property
    def size(self) -> int:
        """Columns of Phi: n with a moving weight, one more with a moving bias."""
        return self.weight * self.inputs + self.bias

    @property
    def spanned(self) -> bool:
        """Never: so few patches are written out."""
        return False

    def gram(self) -> Tensor:
        """Phi' Phi, (g, size, size)."""
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

    def pull(self, E: Tensor) -> Tensor:
        """Phi' E, (g, size, m), from E (g, B, P, m)."""
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

    def image(self, V: Tensor) -> Tensor:
        """Phi V, (g, B, P, m), from V (g, size, m)."""
        g, size, m = V.shape
        if not self.weight:
            return V.unsqueeze(1).expand(g, len(self.x), math.prod(self.positions), m)
        b = V[:, -1].flatten() if self.bias else None
        W = V[:, : size - self.bias].mT.reshape(g * m, self.channels, *self.window.kernel)
        window = self.window
        z = F.conv2d(self.x, W, b, window.stride, window.padding, window.dilation, g)
        return self.images(z)

    def to(self, dtype: torch.dtype) -> "Patches":
        """The same in another dtype."""
        return replace(self, x=self.x.to(dtype))

    def written_out(self) -> Features:
        """The same with A (g, N, n) as a matrix."""
        window = self.window
        patches = F.unfold(self.x, window.kernel, window.dilation, window.padding, window.stride)
        A = patches.unflatten(1, (self.groups, self.inputs)).permute(1, 0, 3, 2).flatten(1, 2)
        return Features(A, self.weight, self.bias, self.sharing)

    def images(self, z: Tensor) -> Tensor:
        """(g, B, P, m) from a tensor of the output's shape, (B, g m, rows, columns)."""
        return z.flatten(2).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2)

    def over_rows(self, E: Tensor) -> Tensor:
        """The sum of E (g, B, P, m) over its rows, (g, m)."""
        return E.sum((1, 2))

    def spread(self, t: Tensor) -> Tensor:
        """One number a neuron, (g, m), as a factor for images, (g, 1, 1, m)."""
        return t[:, None, None]

    def _sums(self, x: Tensor) -> Tensor:
        """The sum over all positions of what lies under each of the kernel's entries, (g, n)."""
        ones = Patches(x.sum(0, keepdim=True), self.window, bias=False)
        return ones.pull(x.new_ones(self.groups, 1, math.prod(self.positions), 1)).squeeze(-1)
