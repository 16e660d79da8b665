"""Features whose rows are distributed over ranks: the collectives, and the operators that hide them."""

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
        group: the process group; None for the default one.
        received: bytes that this rank has received so far, as ring algorithms move them.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.received = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A process group cannot be copied, so the copy shares it."""
        return self

    @property
    def size(self) -> int:
        """The number of ranks."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's rank."""
        return dist.get_rank(self.group)

    def all_reduce(self, part: Tensor) -> Tensor:
        """The sum of the ranks' tensors of equal shape; bitwise equal on all ranks."""
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        self.received += 2 * _bytes(total) * (self.size - 1) / self.size
        return total

    def all_gather(self, part: Tensor) -> Tensor:
        """(ranks, ...) the tensors of all ranks."""
        everything = part.new_empty(self.size * part.numel())
        dist.all_gather_into_tensor(everything, part.flatten(), group=self.group)
        self.received += _bytes(part) * (self.size - 1)
        return everything.view(self.size, *part.shape)

    def all_to_all(self, parts: Tensor) -> Tensor:
        """(ranks, ...) the tensors from each rank for this one, given this rank's tensors for each."""
        for_me, parts = torch.empty_like(parts, memory_format=torch.contiguous_format), parts.contiguous()
        dist.all_to_all_single(for_me, parts, group=self.group)
        self.received += _bytes(parts) * (self.size - 1) / self.size
        return for_me


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class GatheredFeatures(DenseFeatures):
    """All rows on this rank, for a subproblem with its share of the output units.

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

        Each rank's solver decides by its own units, so one may have switched to direct coordinates for precision while
        another has not. A flag of each rank says so; if one has, all send displacements.
        """
        elsewhere = coordinates.direct and self.spanned
        flag = finite.to(x.dtype).reshape(1) if isinstance(finite, Tensor) else x.new_full((1,), finite)
        usual = x.new_zeros(*self.leading, self.rows, x.shape[-1]) if elsewhere else x
        whole, flags = self._gather_units(usual, flag + 2 * elsewhere)
        if x.is_cpu and flags.amax() > 1:
            whole, flags = self._gather_units(coordinates.entries(x), flag)
            coordinates = Direct(self)
        everywhere = flags.amin() > 0
        return coordinates, whole, everywhere if isinstance(finite, Tensor) else bool(everywhere)

    def _gather_units(self, x: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
        """(..., r, m) from each rank's units (..., r, m/ranks), and (ranks,) from each rank's flag (1,)."""
        exchange, width = self.exchange, units_per_rank(self.neurons, self.exchange.size)
        part = F.pad(x, (0, width - x.shape[-1]))
        everything = exchange.all_gather(torch.cat([part.flatten(), flag]))
        whole = everything[:, :-1].reshape(exchange.size, *part.shape).movedim(0, -2).flatten(-2)
        return whole[..., : self.neurons], everything[:, -1]


class SummedFeatures(FeatureOperator):
    """This rank's rows, for the subproblem of all rows; sums over rows are completed over ranks.

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
        """The same layer, with another choice of trained parameters."""
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
        return self.exchange.all_reduce(part)


def units_per_rank(neurons: int, ranks: int) -> int:
    """How many of a layer's output units each rank solves for; the last ones may have fewer."""
    return -(-neurons // ranks)
