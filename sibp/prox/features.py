"""A layer's input as its subproblem sees it: the matrix Phi = [A, 1], and the three products that solvers need.

Phi'Phi (`gram`), Phi'E (`pull`) and Phi V (`image`). Here Phi is written out; `sibp.prox.patches` has the same for
convolutions, whose Phi is many times larger than the layer's input and never needs to be.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sibp.prox.numbers import Flag


class Sharing:
    """Where a subproblem's rows and neurons are: in this process, all of them."""

    @property
    def partial(self) -> bool:
        """Whether these are some of the subproblem's rows only; others are in other processes."""
        return False

    def total(self, part: Tensor, *, symmetric: bool = False) -> Tensor:
        """A sum over all rows, from the sum over these; `symmetric` matrices may be treated as such."""
        del symmetric
        return part

    def whole(self, x: Tensor, finite: Flag) -> tuple[Tensor, Flag]:
        """Coefficients of all neurons, (..., r, m), from those that were solved for here; finite if all were."""
        return x, finite


ALONE = Sharing()


@dataclass(frozen=True)
class Features:
    """Phi (..., N, size), from the layer's inputs.

    Attributes:
        A: (..., N, n) inputs, one row a sample (or a sample's position, for a convolution).
        weight: whether W moves.
        bias: whether b moves.
        sharing: where rows and neurons are.
    """

    A: Tensor
    weight: bool = True
    bias: bool = True
    sharing: Sharing = ALONE

    @property
    def rows(self) -> int:
        """N."""
        return self.A.shape[-2]

    @property
    def inputs(self) -> int:
        """n, columns of A."""
        return self.A.shape[-1]

    @property
    def groups(self) -> int:
        """Matrices of this size that the layer has, each with its own neurons."""
        return self.A.shape[0] if self.A.dim() > 2 else 1

    @property
    def size(self) -> int:
        """Columns of Phi: n with a moving weight, one more with a moving bias."""
        return self.weight * self.inputs + self.bias

    @property
    def spanned(self) -> bool:
        """Whether the rows are all here and no more than Phi's columns: differences are no larger than the weights."""
        return self.rows <= self.size and not self.sharing.partial

    @cached_property
    def phi(self) -> Tensor:
        """Phi itself, (..., N, size)."""
        columns = ([self.A] if self.weight else []) + ([self.A.new_ones(*self.A.shape[:-1], 1)] if self.bias else [])
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def gram(self) -> Tensor:
        """Phi' Phi, (..., size, size)."""
        return self.phi.mT @ self.phi

    def squared_norm(self) -> Tensor:
        """||Phi||^2, (...)."""
        return torch.linalg.vector_norm(self.phi, dim=(-2, -1)).square()

    def pull(self, E: Tensor) -> Tensor:
        """Phi' E, (..., size, m), from E (..., N, m)."""
        return self.phi.mT @ E

    def image(self, V: Tensor) -> Tensor:
        """Phi V, (..., N, m), from V (..., size, m)."""
        return self.phi @ V

    def to(self, dtype: torch.dtype) -> "Features":
        """The same in another dtype."""
        return replace(self, A=self.A.to(dtype))

    def written_out(self) -> "Features":
        """These themselves: A is there already."""
        return self

    def over_rows(self, E: Tensor) -> Tensor:
        """The sum of E (..., N, m) over its rows, (..., m)."""
        return E.sum(-2)

    def spread(self, t: Tensor) -> Tensor:
        """One number a neuron, (..., m), as a factor for images, (..., 1, m)."""
        return t.unsqueeze(-2)
