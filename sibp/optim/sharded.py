"""Layers whose rows of features are spread over ranks: what is sent between them, and the operators that hide it."""

from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from sibp.prox.operators import DenseFeatures, FeatureOperator
from sibp.prox.scalars import Flag
from sibp.prox.solvers.coordinates import Coordinates, Direct


class Exchange:
    """The collectives of one process group.

    Attributes:
        group: of the ranks; None for the default one.
        received: bytes that a rank got from others so far, as ring algorithms move them.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.received = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A process group cannot be copied: it is shared."""
        return self

    @property
    def size(self) -> int:
        """The number of ranks."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return dist.get_rank(self.group)

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the ranks' tensors, which have one shape; equal to the last bit on all."""
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        self.received += 2 * _bytes(total) * (self.size - 1) / self.size
        return total

    def all(self, part: Tensor) -> Tensor:
        """(ranks, ...) the tensors of all ranks."""
        everything = part.new_empty(self.size * part.numel())
        dist.all_gather_into_tensor(everything, part.flatten(), group=self.group)
        self.received += _bytes(part) * (self.size - 1)
        return everything.view(self.size, *part.shape)

    def swap(self, parts: Tensor) -> Tensor:
        """(ranks, ...) what each rank has for this one, from what this one has for each."""
        for_me, parts = torch.empty_like(parts, memory_format=torch.contiguous_format), parts.contiguous()
        dist.all_to_all_single(for_me, parts, group=self.group)
        self.received += _bytes(parts) * (self.size - 1) / self.size
        return for_me


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class GatheredFeatures(DenseFeatures):
    """All rows on this rank, for a subproblem with its share of the output units only.

    Args:
        A: (..., N, n) of all ranks.
        own: of this rank.
        exchange: between the ranks.
        neurons: m, of all ranks.
    """

    def __init__(self, A: Tensor, own: FeatureOperator, exchange: Exchange, neurons: int) -> None:
        super().__init__(A, own.weight, own.bias)
        self.exchange, self.neurons = exchange, neurons

    def all_units(self, coordinates: Coordinates, x: Tensor, finite: Flag) -> tuple[Coordinates, Tensor, Flag]:
        """Coefficients of all output units, (..., r, m), from this rank's; finite only if they are everywhere.

        Solvers decide by the units that they have, so that one rank may have gone to direct coordinates for precision
        and another not. Its flag says so, and then all send their displacements.
        """
        elsewhere = coordinates.direct and self.spanned
        flag = finite.to(x.dtype).reshape(1) if isinstance(finite, Tensor) else x.new_full((1,), finite)
        usual = x.new_zeros(*self.leading, self.rows, x.shape[-1]) if elsewhere else x
        whole, flags = self._of_all_ranks(usual, flag + 2 * elsewhere)
        if x.is_cpu and flags.amax() > 1:
            whole, flags = self._of_all_ranks(coordinates.entries(x), flag)
            coordinates = Direct(self)
        everywhere = flags.amin() > 0
        return coordinates, whole, everywhere if isinstance(finite, Tensor) else bool(everywhere)

    def _of_all_ranks(self, x: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
        """(..., r, m) from each rank's units (..., r, m/ranks), and (ranks,) from each rank's flag (1,)."""
        exchange, width = self.exchange, units_of_each(self.neurons, self.exchange.size)
        part = F.pad(x, (0, width - x.shape[-1]))
        everything = exchange.all(torch.cat([part.flatten(), flag]))
        whole = everything[:, :-1].reshape(exchange.size, *part.shape).movedim(0, -2).flatten(-2)
        return whole[..., : self.neurons], everything[:, -1]


class SummedFeatures(FeatureOperator):
    """This rank's rows, for the subproblem of all rows: sums over rows are completed over ranks.

    Args:
        own: of this rank.
        exchange: between the ranks.
    """

    def __init__(self, own: FeatureOperator, exchange: Exchange) -> None:
        super().__init__(own.x, own.inputs, own.row_shape, own.leading, weight=own.weight, bias=own.bias)
        self.own, self.exchange = own, exchange

    @property
    def spanned(self) -> bool:
        """Never: the other rows are on other ranks."""
        return False

    def moving(self, *, weight: bool, bias: bool) -> Self:
        """The same layer with other trained parts."""
        return type(self)(self.own.moving(weight=weight, bias=bias), self.exchange)

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another dtype."""
        return type(self)(self.own.to(dtype), self.exchange)

    def units_last(self) -> Self:
        """The same, in the fastest form for arrays whose output units are contiguous."""
        return type(self)(self.own.units_last(), self.exchange)

    def matmat(self, V: Tensor) -> Tensor:
        """Phi V for this rank's rows."""
        return self.own.matmat(V)

    def rmatmat(self, E: Tensor) -> Tensor:
        """Phi^T E, from E of this rank's rows."""
        return self.total(self.own.rmatmat(E))

    def gram(self) -> Tensor:
        """Phi^T Phi; only one triangle is sent."""
        part = self.own.gram()
        i, j = torch.tril_indices(*part.shape[-2:], device=part.device)
        whole = torch.empty_like(part)
        whole[..., i, j] = whole[..., j, i] = self.total(part[..., i, j])
        return whole

    def squared_norm(self) -> Tensor:
        """||Phi||^2."""
        return self.total(self.own.squared_norm())

    def over_rows(self, E: Tensor) -> Tensor:
        """The sum over all ranks' rows of E, from this rank's."""
        return self.total(self.own.over_rows(E))

    def total(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts."""
        return self.exchange.sum(part)


def units_of_each(neurons: int, ranks: int) -> int:
    """How many of a layer's output units each rank solves for; the last ones may have fewer."""
    return -(-neurons // ranks)
