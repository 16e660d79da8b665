"""Features with an explicit matrix: linear layers, and patches that are few enough to be materialized."""

from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sibp.prox import closed
from sibp.prox.blocked import symmetric_product
from sibp.prox.operators.base import FeatureOperator, Parts


class DenseFeatures(FeatureOperator):
    """Phi (..., N, size), formed from the matrix A.

    Args:
        A: (..., N, n) inputs, one row per sample, or per position of a sample.
        weight: whether W is trained.
        bias: whether b is trained.
    """

    matrix_free: ClassVar[bool] = False

    def __init__(self, A: Tensor, weight: bool = True, bias: bool = True) -> None:
        *leading, N, n = A.shape
        super().__init__(A, n, (N,), tuple(leading), weight=weight, bias=bias)

    @property
    def A(self) -> Tensor:  # noqa: N802 (the paper's symbol)
        """(..., N, n)."""
        return self.x

    @cached_property
    def _phi(self) -> Tensor:
        columns = ([self.A] if self.weight else []) + ([self.A.new_ones(*self.A.shape[:-1], 1)] if self.bias else [])
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def materialize(self) -> Tensor:
        """Phi itself, (..., N, size), formed once."""
        return self._phi

    def gram(self) -> Tensor:
        """Phi^T Phi, (..., size, size)."""
        return symmetric_product(self.materialize().mT)

    def outer_gram(self) -> Tensor:
        """Phi Phi^T, (..., N, N), without forming Phi."""
        compiled = closed.outer_gram(self.A, float(self.bias)) if self.weight else None
        if compiled is not None:
            return compiled
        gram = symmetric_product(self.A) if self.weight else self.A.new_zeros(*self.leading, self.rows, self.rows)
        if self.bias:
            gram += 1
        return gram

    def displacement(self, E: Tensor, factor: float = 1.0) -> Parts:
        """`factor` E^T Phi as displacements of W and b, without forming Phi."""
        return self.displacement_of_weight(E, factor), E.sum(-2).mul_(factor) if self.bias else None

    def displacement_of_weight(self, E: Tensor, factor: float = 1.0) -> Tensor | None:
        """`factor` E^T A."""
        if not self.weight:
            return None
        if self.leading:
            return (E.mT if factor == 1 else factor * E.mT) @ self.x
        return torch.addmm(self.x.new_empty(1), E.mT, self.x, beta=0, alpha=factor)  # scales without another pass

    def forward(self, W: Tensor, b: Tensor | None) -> Tensor:
        """A W^T + b, (..., N, m)."""
        if self.leading:
            return self.A @ W.mT if b is None else torch.baddbmm(b.unsqueeze(-2), self.A, W.mT)
        return F.linear(self.A, W, b)
