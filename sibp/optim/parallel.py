"""Data parallel training: every rank holds a part of the batch, and all solve the subproblems of the whole batch.

A layer's subproblem couples all rows of the batch: an average of the ranks' own solutions would solve another one. Of
two ways to share it, each layer takes the one that moves fewer bytes (`docs/distributed.md` has the figures):

    gather  every rank gets all rows of A, solves for its share of the neurons (they are independent of each other), and
            the coefficients of the displacement are gathered: little for small batches and wide layers
    sum     every rank keeps its rows; what the solver sums over rows (Phi' Phi, Phi' R, squared residuals) is summed
            over ranks, and all solve for all neurons: little for convolutions and large batches
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from sibp.capture.problem import LayerProblem
from sibp.optim.solvers import Solver
from sibp.prox.numbers import Flag
from sibp.prox.operators import DenseFeatures, FeatureOperator


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
        """A process group is not to be copied."""
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
    """All rows are here, for a subproblem with this rank's share of the output units only.

    Args:
        A: (..., N, n) of all ranks.
        own: of this rank.
        exchange: between the ranks.
        neurons: m, of all ranks.
    """

    def __init__(self, A: Tensor, own: FeatureOperator, exchange: Exchange, neurons: int) -> None:
        super().__init__(A, own.weight, own.bias)
        self.exchange, self.neurons = exchange, neurons

    def all_units(self, x: Tensor, finite: Flag) -> tuple[Tensor, Flag]:
        """Coefficients of all output units, (..., r, m), from this rank's; finite only if they are everywhere."""
        exchange, width = self.exchange, _share(self.neurons, self.exchange.size)
        part = F.pad(x, (0, width - x.shape[-1]))
        flag = finite.to(x.dtype).reshape(1) if isinstance(finite, Tensor) else x.new_full((1,), finite)
        everything = exchange.all(torch.cat([part.flatten(), flag]))
        whole = everything[:, :-1].reshape(exchange.size, *part.shape).movedim(0, -2).flatten(-2)[..., : self.neurons]
        everywhere = everything[:, -1].amin() > 0
        return whole, everywhere if isinstance(finite, Tensor) else bool(everywhere)


class SummedFeatures(FeatureOperator):
    """This rank's rows are here, for the subproblem of all rows: what is summed over rows is summed over ranks.

    Args:
        own: of this rank.
        exchange: between the ranks.
    """

    def __init__(self, own: FeatureOperator, exchange: Exchange) -> None:
        super().__init__(own.x, own.inputs, own.row_shape, own.leading, weight=own.weight, bias=own.bias)
        self.own, self.exchange = own, exchange

    @property
    def spanned(self) -> bool:
        """Never: the other rows are elsewhere."""
        return False

    def moving(self, *, weight: bool, bias: bool) -> Self:
        """The same layer with other parts that move."""
        return type(self)(self.own.moving(weight=weight, bias=bias), self.exchange)

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another dtype."""
        return type(self)(self.own.to(dtype), self.exchange)

    def matmat(self, V: Tensor) -> Tensor:
        """Phi V for the rows that are here."""
        return self.own.matmat(V)

    def rmatmat(self, E: Tensor) -> Tensor:
        """Phi^T E, from E of the rows that are here."""
        return self.total(self.own.rmatmat(E))

    def gram(self) -> Tensor:
        """Phi^T Phi; one half of it travels."""
        part = self.own.gram()
        i, j = torch.tril_indices(*part.shape[-2:], device=part.device)
        whole = torch.empty_like(part)
        whole[..., i, j] = whole[..., j, i] = self.total(part[..., i, j])
        return whole

    def squared_norm(self) -> Tensor:
        """||Phi||^2."""
        return self.total(self.own.squared_norm())

    def over_rows(self, E: Tensor) -> Tensor:
        """The sum over all rows of E, given here for the rows that are here."""
        return self.total(self.own.over_rows(E))

    def total(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts."""
        return self.exchange.sum(part)


@dataclass(frozen=True)
class Plan:
    """How a layer's subproblem is shared.

    Attributes:
        way: "gather" or "sum".
        received: bytes that each rank gets from others for it.
    """

    way: str
    received: float


def plan(
    rows: Sequence[int],
    inputs: int,
    size: int,
    neurons: int,
    *,
    groups: int,
    known: bool,
    solver: Solver,
    itemsize: int,
    by_row: bool = False,
) -> Plan:
    """Chooses the way that moves fewer bytes.

    Args:
        rows: N of each rank.
        inputs: n, columns of A.
        size: columns of Phi.
        neurons: m.
        groups: of a convolution, each with matrices of these sizes.
        known: whether rounds are taken on an activation, which needs both Z and D.
        solver: "exact" for closed forms, "cg" with its rounds, or "gradient".
        itemsize: bytes of a number.
        by_row: whether the activation is another one in every row: then rows have to stay where they are.
    """
    ranks, N, K = len(rows), sum(rows), solver.rounds
    width, longest = _share(neurons, ranks), max(rows)
    gathered = groups * (longest * inputs + (1 + known) * longest * width + min(N, size) * width) + 1
    if solver.kind == "cg":
        summed = groups * (K * (size + 2) * neurons + 2 * neurons + 1)
    elif solver.kind == "gradient":
        summed = groups * size * neurons
    else:
        summed = groups * size * ((size + 1) / 2 + neurons) + 1
    gather = Plan("gather", gathered * (ranks - 1) * itemsize)
    reduce = Plan("sum", summed * 2 * (ranks - 1) / ranks * itemsize)
    return reduce if by_row or solver.kind == "gradient" or reduce.received < gather.received else gather


def _share(neurons: int, ranks: int) -> int:
    """Neurons of each rank; the last ones may have fewer."""
    return -(-neurons // ranks)


@dataclass
class DataParallel:
    """Lets ranks solve the subproblems of their batches together.

    Attributes:
        exchange: between the ranks.
        plans: how each layer was shared last, by name.
    """

    exchange: Exchange
    plans: dict[str, Plan] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: object, method: str) -> Self | None:
        """What the user's `data_parallel` says: True for all processes, or a process group; None if there is but one.

        Raises:
            TypeError: if it is neither.
            RuntimeError: if `torch.distributed` is not initialised.
            ValueError: if this process is not in the group.
        """
        if wanted is False or wanted is None:
            return None
        if wanted is not True and not isinstance(wanted, ProcessGroup):
            raise TypeError(f"Invalid data_parallel: {wanted!r}; True, False or a torch.distributed process group.")
        if not dist.is_initialized():
            raise RuntimeError(
                f"{method}(data_parallel=True) needs torch.distributed: call torch.distributed.init_process_group() "
                "before, and start the processes with torchrun."
            )
        exchange = Exchange(None if wanted is True else wanted)
        if exchange.rank < 0:
            raise ValueError(f"Invalid data_parallel: this process is not in the group given to {method}.")
        return None if exchange.size == 1 else cls(exchange)

    def start(self, model: nn.Module) -> None:
        """Gives all ranks the parameters and buffers of the first.

        Raises:
            ValueError: if the ranks' models differ in more than numbers.
        """
        tensors = [*model.named_parameters(), *model.named_buffers()]
        mine = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors]
        models: list[Any] = [None] * self.exchange.size
        dist.all_gather_object(models, mine, group=self.exchange.group)
        for rank, other in enumerate(models):
            if other != models[0]:
                differing = sorted(set(other) ^ set(models[0])) or ["their order"]
                raise ValueError(f"data_parallel: rank {rank} holds another model than rank 0: {differing[0]}.")
        with torch.no_grad():
            for _, tensor in tensors:
                first = tensor.contiguous()
                dist.broadcast(first, group_src=0, group=self.exchange.group)
                tensor.copy_(first)

    def share(self, problem: LayerProblem, solver: Solver, lr: float, prox_weight: float) -> LayerProblem:
        """This rank's part in the subproblem of all rows; its differences are sums over samples (`terms` is 1).

        Args:
            problem: with this rank's rows.
            solver: what will be done with it.
            lr: eta.
            prox_weight: lam.

        Raises:
            RuntimeError: if the ranks are not at the same layer with the same settings.
        """
        features, m, known = problem.features, problem.D_z.shape[-1], problem.activation is not None
        summed = replace(
            problem,
            D_z=problem.D_z * problem.terms,
            D=None if problem.D is None else problem.D * problem.terms,
            terms=1.0,
        )
        rows = self._agree(problem, solver, lr, prox_weight)
        self.plans[problem.name] = chosen = plan(
            rows, features.inputs, features.size, m,
            groups=features.groups, known=known, solver=solver, itemsize=problem.D_z.element_size(),
            by_row=problem.activation is not None and problem.activation.by_entry,
        )  # fmt: skip
        if chosen.way == "sum":
            return replace(summed, features=SummedFeatures(features, self.exchange))
        own = features.moving(weight=True, bias=False).materialize()
        A = _all_rows(self.exchange.all(_lengthened(own, max(rows))), rows)
        gathered = GatheredFeatures(A, features, self.exchange, m)
        # The activation's solver takes D and Z, all others D_z: what nobody reads does not travel.
        Z, D, D_z = summed.Z, summed.D, features.flat(summed.D_z)
        if known and Z is not None and D is not None:
            Z, D = (self._my_neurons(features.flat(part), rows) for part in (Z, D))
        else:
            D_z = self._my_neurons(D_z, rows)
        return replace(summed, features=gathered, Z=Z, D=D, D_z=D_z)

    def whole_loss(self, loss: float, terms: float, *, mean: bool, device: torch.device) -> float:
        """The loss of all ranks' batches together, from that of this rank's; the same number on all.

        Args:
            loss: of this rank.
            terms: that it averages over.
            mean: whether it is an average, and not a sum.
            device: that the ranks exchange tensors on.
        """
        if not mean:
            return float(self.exchange.sum(torch.tensor([loss], dtype=torch.float64, device=device)))
        weighted = [loss * terms if terms else 0.0, terms]
        total, everything = self.exchange.sum(torch.tensor(weighted, dtype=torch.float64, device=device)).tolist()
        return total / everything if everything else math.nan

    def whole_gradient(self, gradient: Tensor, terms: float, *, mean: bool) -> Tensor:
        """The gradient of the loss of all ranks' batches together, from that of this rank's.

        Args:
            gradient: of this rank's loss, of the parameter's shape.
            terms: that this rank's loss averages over.
            mean: whether the loss is an average, and not a sum.
        """
        if not mean:
            return self.exchange.sum(gradient)
        weighted = torch.cat([gradient.flatten() * terms, gradient.new_full((1,), terms)])
        total = self.exchange.sum(weighted)
        return (total[:-1] / total[-1]).view_as(gradient)

    def _my_neurons(self, X: Tensor, rows: list[int]) -> Tensor:
        """(..., N, m/ranks) all rows of this rank's columns, from (..., N of this rank, m)."""
        ranks, rank, m = self.exchange.size, self.exchange.rank, X.shape[-1]
        width = _share(m, ranks)
        X = F.pad(_lengthened(X, max(rows)), (0, ranks * width - m))
        columns = self.exchange.swap(X.unflatten(-1, (ranks, width)).movedim(-2, 0))
        mine = max(0, min(width, m - rank * width))
        return _all_rows(columns, rows)[..., :mine]

    def _agree(self, problem: LayerProblem, solver: Solver, lr: float, prox_weight: float) -> list[int]:
        """The rows of every rank, once it is sure that all are about to do the same."""
        features, s = problem.features, problem.activation
        mine = {
            "layer": zlib.crc32(problem.name.encode()),
            "neurons": problem.D_z.shape[-1],
            "inputs": features.inputs,
            "weight that moves": features.weight,
            "bias that moves": features.bias,
            "activation": 0 if s is None else zlib.crc32(s.name.encode()),
            "solver": zlib.crc32(solver.kind.encode()) + solver.rounds,
            "lr": lr,
            "prox_weight": prox_weight,
        }
        figures = torch.tensor(
            [features.rows, *mine.values()], dtype=torch.float64, device=problem.D_z.device
        )  # whole numbers up to 2^53
        rows, *columns = self.exchange.all(figures).T.tolist()
        for what, column in zip(mine, columns, strict=True):
            if min(column) != max(column):
                raise RuntimeError(
                    f"layer '{problem.name}': the ranks differ in its {what}; every rank has to run the same layers "
                    "in the same order with the same settings."
                )
        return [int(N) for N in rows]


def _lengthened(X: Tensor, rows: int) -> Tensor:
    """X with rows of zeros below: collectives want the same shape from all."""
    return X if X.shape[-2] == rows else F.pad(X, (0, 0, 0, rows - X.shape[-2]))


def _all_rows(parts: Tensor, rows: list[int]) -> Tensor:
    """(..., N, c) from (ranks, ..., longest, c), without the rows that were added."""
    return torch.cat([part[..., :N, :] for part, N in zip(parts, rows, strict=True)], -2)


def refuse_averaging(method: str) -> None:
    """Refuses a forward pass inside `DistributedDataParallel`, which would average displacements.

    Raises:
        RuntimeError: if there is more than one process.
    """
    # Private: the wrapper tells nobody else that its forward pass is running.
    ddp = DistributedDataParallel._get_active_ddp_module()
    if ddp is not None and dist.get_world_size(ddp.process_group) > 1:
        raise RuntimeError(
            f"DistributedDataParallel averages gradients, and an average of the ranks' updates is not {method}'s "
            f"update for the whole batch; use {method}(model, data_parallel=True), with or without the wrapper."
        )
