"""Data-parallel training: every rank holds a part of the batch; together, they solve the whole batch's subproblems.

A layer's subproblem couples all rows of the batch: averaging the ranks' own solutions would solve a different problem.
It can be shared in two modes. Each layer uses the mode in which a rank receives fewer bytes (`docs/distributed.md`
has the byte counts):

    gather  Every rank gets all rows of A and solves for its share of the output units, which are independent. Then the
            coefficients of the displacement are gathered. Cheap for small batches and wide layers.
    sum     Every rank keeps its rows. The solver's sums over rows (Phi^T Phi, Phi^T R, squared residuals, with
            R = Z - T) are added up over ranks, and every rank solves for all output units. Cheap for convolutions and
            large batches.
"""

import math
import weakref
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from sibp.capture.problem import LayerProblem
from sibp.optim.sharded import Exchange, GatheredFeatures, SummedFeatures, units_per_rank
from sibp.optim.solvers import Solver


@dataclass(frozen=True)
class Plan:
    """How a layer's subproblem is shared.

    Attributes:
        mode: "gather" or "sum"; see the module.
        received: bytes that each rank receives from the others for one backward pass of the layer.
    """

    mode: str
    received: float


def plan(
    rows: Sequence[int],
    inputs: int,
    size: int,
    neurons: int,
    *,
    groups: int,
    activation: bool,
    solver: Solver,
    itemsize: int,
    by_row: bool = False,
) -> Plan:
    """Chooses the mode in which a rank receives fewer bytes.

    Args:
        rows: N of each rank, its number of feature rows.
        inputs: n, columns of A.
        size: columns of Phi.
        neurons: m, the number of output units.
        groups: groups of a convolution, each with matrices of these sizes.
        activation: whether the subproblem contains an activation, so that the solver needs both Z and D.
        solver: "exact" for closed forms, "cg" with its iterations, or "gradient".
        itemsize: bytes per number.
        by_row: whether the activation differs between rows; such rows are not gathered.

    Returns:
        The mode and its bytes. The solver "gradient" always sums.
    """
    ranks, N, K = len(rows), sum(rows), solver.iterations
    width, longest = units_per_rank(neurons, ranks), max(rows)
    gathered = groups * (longest * inputs + (1 + activation) * longest * width + min(N, size) * width) + 1
    if solver.kind == "cg":
        summed = groups * (K * (size + 2) * neurons + 2 * neurons + 1)
    elif solver.kind == "gradient":
        summed = groups * size * neurons
    else:
        summed = groups * size * ((size + 1) / 2 + neurons) + 1
    gather = Plan("gather", gathered * (ranks - 1) * itemsize)
    reduce = Plan("sum", summed * 2 * (ranks - 1) / ranks * itemsize)
    return reduce if by_row or solver.kind == "gradient" or reduce.received < gather.received else gather


class Averaging(Protocol):
    """The part of an optimizer that `DataParallel.average_gradients` uses."""

    loss_average: bool | int

    @property
    def last_terms(self) -> int | None:
        """Number of terms that the loss of the last pass averaged over."""
        ...

    def active(self) -> bool:
        """Whether the optimizer uses the results of backward passes now."""
        ...


@dataclass
class DataParallel:
    """Lets ranks solve the subproblems of their common batch together.

    Attributes:
        exchange: the collectives between the ranks.
        plans: how each layer's subproblem was shared in the last backward pass, by layer name.
    """

    exchange: Exchange
    plans: dict[str, Plan] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: object, method: str) -> Self | None:
        """The object for the user's `data_parallel`; None for False, or if there is only one process.

        Args:
            wanted: `data_parallel` as the user passed it: True, False, None or a process group.
            method: the optimizer's name, for messages.

        Raises:
            TypeError: if `wanted` is anything else.
            RuntimeError: if `torch.distributed` is not initialised.
            ValueError: if this process is not in the group.
        """
        if wanted is False or wanted is None:
            return None
        if wanted is not True and not isinstance(wanted, ProcessGroup):
            raise TypeError(f"Invalid data_parallel: {wanted!r}; give True, False or a process group.")
        if not dist.is_initialized():
            raise RuntimeError(
                f"{method}(data_parallel=True) needs torch.distributed: call torch.distributed.init_process_group() "
                "first, and start the processes with torchrun."
            )
        exchange = Exchange(None if wanted is True else wanted)
        if exchange.rank < 0:
            raise ValueError(f"Invalid data_parallel: this process is not in the group given to {method}.")
        return None if exchange.size == 1 else cls(exchange)

    def start(self, model: nn.Module) -> None:
        """Copies the first rank's parameters and buffers to all ranks.

        Raises:
            ValueError: if the ranks' models differ in more than their values.
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
        """This rank's part of the whole batch's subproblem.

        Args:
            problem: the subproblem of this rank's rows.
            solver: the solver that will be used.
            lr: eta.
            prox_weight: lam.

        Returns:
            The subproblem with the error signals of the summed loss (`terms` is 1). In the mode "gather", it has the
            rows of all ranks and this rank's output units; in the mode "sum", this rank's rows and all output units.

        Raises:
            RuntimeError: if the ranks are at different layers, or have different settings.
        """
        features, m, known = problem.features, problem.D_z.shape[-1], problem.activation is not None
        summed = replace(
            problem,
            D_z=problem.D_z * problem.terms,
            D=None if problem.D is None else problem.D * problem.terms,
            terms=1.0,
        )
        rows = self._check_agreement(problem, solver, lr, prox_weight)
        self.plans[problem.name] = chosen = plan(
            rows, features.inputs, features.size, m,
            groups=features.groups, activation=known, solver=solver, itemsize=problem.D_z.element_size(),
            by_row=problem.activation is not None and problem.activation.varies_by_entry,
        )  # fmt: skip
        if chosen.mode == "sum":
            return replace(summed, features=SummedFeatures(features, self.exchange))
        own = features.moving(weight=True, bias=False).materialize()
        A = _concatenate_rows(self.exchange.all_gather(_pad_rows(own, max(rows))), rows)
        gathered = GatheredFeatures(A, features, self.exchange, m)
        # A solver with the activation inside uses D and Z, all others use D_z. Unused arrays are not exchanged.
        Z, D, D_z = summed.Z, summed.D, features.flat(summed.D_z)
        if known and Z is not None and D is not None:
            Z, D = (self._own_units(features.flat(part), rows) for part in (Z, D))
        else:
            D_z = self._own_units(D_z, rows)
        return replace(summed, features=gathered, Z=Z, D=D, D_z=D_z)

    def reduce_loss(self, loss: float, terms: float, *, mean: bool, device: torch.device) -> float:
        """The loss over the batches of all ranks, as the same number on all ranks.

        Args:
            loss: this rank's loss.
            terms: number of terms that it averages over; unused for a sum.
            mean: whether the loss is a mean; else it is a sum.
            device: the device on which numbers are exchanged.

        Returns:
            The mean, weighted by `terms` (NaN if no rank has any), or the sum.
        """
        if not mean:
            return float(self.exchange.all_reduce(torch.tensor([loss], dtype=torch.float64, device=device)))
        weighted = [loss * terms if terms else 0.0, terms]
        total, all_terms = self.exchange.all_reduce(torch.tensor(weighted, dtype=torch.float64, device=device)).tolist()
        return total / all_terms if all_terms else math.nan

    def reduce_gradient(self, gradient: Tensor, terms: float, *, mean: bool) -> Tensor:
        """The gradient of the loss over the batches of all ranks, in the parameter's shape.

        Args:
            gradient: the gradient of this rank's loss, in the parameter's shape.
            terms: number of terms that this rank's loss averages over.
            mean: whether the loss is a mean; else it is a sum.
        """
        if not mean:
            return self.exchange.all_reduce(gradient)
        weighted = torch.cat([gradient.flatten() * terms, gradient.new_full((1,), terms)])
        total = self.exchange.all_reduce(weighted)
        return (total[:-1] / total[-1]).view_as(gradient)

    def average_gradients(
        self, params: Iterable[nn.Parameter], owner: "Averaging"
    ) -> list[torch.utils.hooks.RemovableHandle]:
        """Makes backward passes leave the gradient of the loss over all ranks' batches in the parameters' `.grad`.

        Args:
            params: parameters without a proximal subproblem; those that need no gradient are ignored.
            owner: the optimizer; only a weak reference is kept.

        Returns:
            The hooks' handles. In a backward pass, a hook raises RuntimeError if the size of the batch is not known.
        """
        reference = weakref.ref(owner)

        def reduce(gradient: Tensor) -> Tensor | None:
            owner = reference()
            if owner is None or not owner.active():
                return None
            if owner.last_terms is None:
                raise RuntimeError(
                    "data_parallel: no layer with a proximal subproblem was in the forward pass, so the size of this "
                    "rank's batch is not known; set loss_average to the number of terms of the loss."
                )
            return self.reduce_gradient(gradient, owner.last_terms, mean=owner.loss_average is not False)

        return [p.register_hook(reduce) for p in params if p.requires_grad]

    def _own_units(self, X: Tensor, rows: list[int]) -> Tensor:
        """The columns of this rank's output units, with the rows of all ranks.

        Args:
            X: (..., rows of this rank, m).
            rows: the number of rows of each rank.

        Returns:
            (..., sum of rows, m/ranks); the last ranks may have fewer columns.
        """
        ranks, rank, m = self.exchange.size, self.exchange.rank, X.shape[-1]
        width = units_per_rank(m, ranks)
        X = F.pad(_pad_rows(X, max(rows)), (0, ranks * width - m))
        columns = self.exchange.all_to_all(X.unflatten(-1, (ranks, width)).movedim(-2, 0))
        own = max(0, min(width, m - rank * width))
        return _concatenate_rows(columns, rows)[..., :own]

    def _check_agreement(self, problem: LayerProblem, solver: Solver, lr: float, prox_weight: float) -> list[int]:
        """Checks that all ranks solve the same layer with the same settings; returns each rank's number of rows."""
        features, s = problem.features, problem.activation
        mine = {
            "name": zlib.crc32(problem.name.encode()),
            "number of neurons": problem.D_z.shape[-1],
            "number of inputs": features.inputs,
            "training of the weight": features.weight,
            "training of the bias": features.bias,
            "activation": 0 if s is None else zlib.crc32(s.name.encode()),
            "solver": zlib.crc32(solver.kind.encode()) + solver.iterations,
            "lr": lr,
            "prox_weight": prox_weight,
        }
        # float64 holds whole numbers up to 2^53 exactly.
        numbers = torch.tensor([features.rows, *mine.values()], dtype=torch.float64, device=problem.D_z.device)
        rows, *columns = self.exchange.all_gather(numbers).T.tolist()
        for what, column in zip(mine, columns, strict=True):
            if min(column) != max(column):
                raise RuntimeError(
                    f"layer '{problem.name}': the ranks differ in its {what}; every rank has to run the same layers "
                    "in the same order with the same settings."
                )
        return [int(N) for N in rows]


def _pad_rows(X: Tensor, rows: int) -> Tensor:
    """X (..., N, c) with zeros appended up to `rows` rows: collectives need the same shape on all ranks."""
    return X if X.shape[-2] == rows else F.pad(X, (0, 0, 0, rows - X.shape[-2]))


def _concatenate_rows(parts: Tensor, rows: list[int]) -> Tensor:
    """All ranks' rows, (..., sum of rows, c), from (ranks, ..., longest, c), without the appended rows."""
    return torch.cat([part[..., :N, :] for part, N in zip(parts, rows, strict=True)], -2)


def refuse_averaging(method: str) -> None:
    """Refuses a forward pass inside `DistributedDataParallel`, which would average displacements.

    Args:
        method: the optimizer's name, for the message.

    Raises:
        RuntimeError: if the wrapper's forward pass is running, with more than one process.
    """
    # torch has no public function that says whether the wrapper's forward pass is running.
    ddp = DistributedDataParallel._get_active_ddp_module()
    if ddp is not None and dist.get_world_size(ddp.process_group) > 1:
        raise RuntimeError(
            f"DistributedDataParallel averages gradients, and an average of the ranks' updates is not {method}'s "
            f"update for the whole batch; use {method}(model, data_parallel=True), with or without the wrapper."
        )
