"""Processes that train together, and the results of each."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP, ProxBP
from sibp.optim.proximal import ProximalOptimizer

SERVER = multiprocessing.get_context("forkserver")
# A process has one such server: the same list as in tests/experiment/children.py.
SERVER.set_forkserver_preload(["sibp.train", "torch._dynamo", "sklearn.datasets"])
STEPS = 4
# A machine may be unable to resolve its own host name.
SETTINGS = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
F64 = torch.float64


class Positions(nn.Module):
    """Layers on each position of a sequence, and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embed((3 * x).long().clamp(0, 4))).mean(1)


def norms() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def convolutions() -> nn.Module:
    convs = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2, stride=2, groups=2), nn.ReLU()
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(24, 3))


def mlp(inputs: int, hidden: int, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "wide": (partial(mlp, 40, 7), (40,)),  # more inputs than rows
    "narrow": (partial(mlp, 3, 5), (3,)),  # fewer
    "slopes": (lambda: nn.Sequential(nn.Linear(40, 7), nn.PReLU(7), nn.Linear(7, 3)), (40,)),  # one a neuron
    "no bias": (partial(mlp, 6, 2, bias=False), (6,)),  # fewer neurons than three ranks
    "convolutions": (convolutions, (2, 4, 4)),
    "norms": (norms, (9,)),
    "positions": (Positions, (2,)),
}
METHODS: dict[str, Callable[..., ProximalOptimizer]] = {
    "sibp exact": partial(SIBP, lr=0.3, prox_weight=0.7, solver="exact"),
    "sibp cg:3": partial(SIBP, lr=0.3, prox_weight=0.7, solver="cg:3"),
    "proxbp exact": partial(ProxBP, lr=0.3, prox_weight=0.7),
    "proxbp cg:2": partial(ProxBP, lr=0.3, prox_weight=0.7, solver="cg:2"),
    "proxbp gradient": partial(ProxBP, lr=0.01, prox_weight=0.7, solver="gradient"),
    "auto": AutoSIBP,
    "auto, sum": partial(AutoSIBP, loss_average=False),
    "line search": partial(SIBP, lr=30.0, prox_weight=0.7, line_search=True),
    "sum": partial(SIBP, lr=0.1, prox_weight=0.7, solver="cg:3", loss_average=False),
    "sgd for the rest": partial(
        SIBP, lr=0.3, prox_weight=0.7, solver="exact", weight_decay=0.1,
        fallback=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training that one process and several have to do alike.

    Attributes:
        net: key of NETS.
        method: key of METHODS.
        parts: rows of each rank.
        clip: maximal norm of the gradients, if they are clipped.
        passes: backward passes before each step.
        bad: a row of the first batch whose input is infinite.
        ddp: whether the model is wrapped in DistributedDataParallel, too.
        unit: multiplies the loss.
    """

    net: str
    method: str
    parts: tuple[int, ...]
    clip: float | None = None
    passes: int = 1
    bad: int | None = None
    ddp: bool = False
    unit: float = 1.0

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return NETS[self.net][0]().to(F64)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows of all ranks."""
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(sum(self.parts), *NETS[self.net][1], generator=generator, dtype=F64)
        if self.bad is not None and number == 0:
            x[self.bad] = torch.inf
        return x, torch.randint(3, (len(x),), generator=generator)

    def train(self, model: nn.Module, optimizer: ProximalOptimizer, rank: int | None = None) -> list[Tensor]:
        """Trains on all rows, or a rank's; gives the parameters after each step."""
        first = sum(self.parts[:rank]) if rank is not None else 0
        rows = slice(first, first + self.parts[rank]) if rank is not None else slice(None)
        reduction = "sum" if optimizer.loss_average is False else "mean"
        history, device = [], next(model.parameters()).device

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return self.unit * F.cross_entropy(model(x), y, reduction=reduction)

        for step in range(STEPS):
            optimizer.zero_grad()
            for number in range(step * self.passes, (step + 1) * self.passes):
                x, y = (t[rows].to(device) for t in self.batch(number))
                loss(x, y).backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            if optimizer.line_search:
                optimizer.step(evaluate=lambda x=x, y=y: loss(x, y))
            else:
                optimizer.step()
            history.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return history

    def on_rank(self, rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
        """Trains a rank's rows, starting from weights of its own that must not matter."""
        model = self.model(seed=rank)
        optimizer = METHODS[self.method](model, data_parallel=group)
        trained = nn.parallel.DistributedDataParallel(model, process_group=group) if self.ddp else model
        history = self.train(trained, optimizer, rank)
        parallel = optimizer.parallel
        assert parallel is not None
        return {
            "weights": history,
            "plans": parallel.plans,
            "received": parallel.exchange.received,
            "stats": optimizer.solver_stats(),
        }


def run(jobs: Sequence[tuple[str, Callable[..., Any], int]], ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Runs jobs one after another in new processes; gives each rank's results, and "exit code".

    Args:
        jobs: (name, job, number of ranks that take part). A job gets its rank and the process group; if it raises, its
            result is the exception's text.
        ranks: number of processes.
        folder: for what they tell each other.
    """
    processes = [SERVER.Process(target=_work, args=(jobs, rank, ranks, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
            process.join()
    found = [folder / f"{rank}.pt" for rank in range(ranks)]
    results = [torch.load(path, weights_only=False) if path.exists() else {} for path in found]
    return [{**result, "exit code": process.exitcode} for result, process in zip(results, processes, strict=True)]


def _work(jobs: Sequence[tuple[str, Callable[..., Any], int]], rank: int, ranks: int, folder: Path) -> None:
    os.environ.update(SETTINGS)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=30))
    groups = {size: dist.new_group(list(range(size))) for size in range(1, ranks + 1)}
    results: dict[str, Any] = {}
    for name, job, size in jobs:
        if rank < size:
            try:
                results[name] = job(rank, groups[size])
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"
        torch.save(results, folder / f"{rank}.pt")
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
