"""Features whose rows are distributed over ranks: the collectives, and the operators that call them."""

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
        """The tensors of all ranks, which have equal shapes; (ranks, ...)."""
        gathered = part.new_empty(self.size * part.numel())
        dist.all_gather_into_tensor(gathered, part.flatten(), group=self.group)
        self.received += _bytes(part) * (self.size - 1)
        return gathered.view(self.size, *part.shape)

    def all_to_all(self, parts: Tensor) -> Tensor:
        """The tensors that the ranks send to this one, (ranks, ...); `parts` holds those that it sends to each rank."""
        received, parts = torch.empty_like(parts, memory_format=torch.contiguous_format), parts.contiguous()
        dist.all_to_all_single(received, parts, group=self.group)
        self.received += _bytes(parts) * (self.size - 1) / self.size
        return received


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class GatheredFeatures(DenseFeatures):
    """The rows of all ranks, for a subproblem with this rank's share of the output units.

    Args:
        A: (..., N, n) layer inputs, with the rows of all ranks.
        own: the features of this rank's rows.
        exchange: the collectives between the ranks.
        neurons: m, the number of output units of all ranks together.
    """

    def __init__(self, A: Tensor, own: FeatureOperator, exchange: Exchange, neurons: int) -> None:
        super().__init__(A, own.weight, own.bias)
        self.exchange, self.neurons = exchange, neurons

    def all_units(self, coordinates: Coordinates, x: Tensor, finite: Flag) -> tuple[Coordinates, Tensor, Flag]:
        """Coefficients of all output units, (..., r, m), from this rank's (..., r, m/ranks); finite only if all are.

        On a CPU, a rank's solver may have switched from span to direct coordinates for precision. Each rank decides
        this for its own output units, and sends a flag. If any rank has switched, all ranks send displacements, which
        are direct coordinates.
        """
        switched = coordinates.direct and self.spanned
        flag = finite.to(x.dtype).reshape(1) if isinstance(finite, Tensor) else x.new_full((1,), finite)
        sent = x.new_zeros(*self.leading, self.rows, x.shape[-1]) if switched else x
        x_all, flags = self._gather_units(sent, flag + 2 * switched)
        if x.is_cpu and flags.amax() > 1:
            x_all, flags = self._gather_units(coordinates.entries(x), flag)
            coordinates = Direct(self)
        finite_on_all = flags.amin() > 0
        return coordinates, x_all, finite_on_all if isinstance(finite, Tensor) else bool(finite_on_all)

    def _gather_units(self, x: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
        """(..., r, m) from each rank's units (..., r, m/ranks), and (ranks,) from each rank's flag (1,)."""
        exchange, width = self.exchange, units_per_rank(self.neurons, self.exchange.size)
        part = F.pad(x, (0, width - x.shape[-1]))
        gathered = exchange.all_gather(torch.cat([part.flatten(), flag]))
        x_all = gathered[:, :-1].reshape(exchange.size, *part.shape).movedim(0, -2).flatten(-2)
        return x_all[..., : self.neurons], gathered[:, -1]


class SummedFeatures(FeatureOperator):
    """This rank's rows, for the subproblem of all rows; sums over rows are added up over ranks.

    Args:
        own: the features of this rank's rows.
        exchange: the collectives between the ranks.
    """

    def __init__(self, own: FeatureOperator, exchange: Exchange) -> None:
        super().__init__(own.x, own.inputs, own.row_shape, own.leading, weight=own.weight, bias=own.bias)
        self.own, self.exchange = own, exchange

    @property
    def spanned(self) -> bool:
        """Always False: the other rows are on other ranks."""
        return False

    def moving(self, *, weight: bool, bias: bool) -> Self:
        """The same layer, with another choice of trained parameters."""
        return type(self)(self.own.moving(weight=weight, bias=bias), self.exchange)

    def to(self, dtype: torch.dtype) -> Self:
        """The same features in another dtype."""
        return type(self)(self.own.to(dtype), self.exchange)

    def units_last(self) -> Self:
        """The same features, in the fastest form for arrays whose output units are contiguous."""
        return type(self)(self.own.units_last(), self.exchange)

    def matmat(self, V: Tensor) -> Tensor:
        """Phi V for this rank's rows."""
        return self.own.matmat(V)

    def rmatmat(self, E: Tensor) -> Tensor:
        """Phi^T E over the rows of all ranks, from this rank's rows of E."""
        return self.total(self.own.rmatmat(E))

    def gram(self) -> Tensor:
        """Phi^T Phi over the rows of all ranks; only one triangle is sent."""
        part = self.own.gram()
        i, j = torch.tril_indices(*part.shape[-2:], device=part.device)
        whole = torch.empty_like(part)
        whole[..., i, j] = whole[..., j, i] = self.total(part[..., i, j])
        return whole

    def squared_norm(self) -> Tensor:
        """||Phi||^2 over the rows of all ranks."""
        return self.total(self.own.squared_norm())

    def over_rows(self, E: Tensor) -> Tensor:
        """The sum of E over the rows of all ranks, from this rank's rows."""
        return self.total(self.own.over_rows(E))

    def total(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts."""
        return self.exchange.all_reduce(part)


def units_per_rank(neurons: int, ranks: int) -> int:
    """How many of a layer's output units each rank solves for; the last ranks may have fewer."""
    return -(-neurons // ranks)
