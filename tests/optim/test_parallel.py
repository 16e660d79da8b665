"""Ranks that each hold a part of the batch take the steps of one process that holds it all."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import METHODS, NETS, Case
from torch import nn

from sibp import SIBP

PAIR, UNEQUAL = (5, 5), (6, 1, 3)
CASES = {
    **{f"{net}, {method}": Case(net, method, PAIR) for net in ("wide", "narrow", "convolutions") for method in METHODS},
    **{f"unequal, {net}, sibp exact": Case(net, "sibp exact", UNEQUAL) for net in NETS},
    **{f"unequal, {net}, sibp cg:3": Case(net, "sibp cg:3", UNEQUAL) for net in NETS},
    "unequal, proxbp gradient": Case("norms", "proxbp gradient", UNEQUAL),
    "unequal, sum": Case("norms", "sum", UNEQUAL),
    "unequal, sgd for the rest": Case("norms", "sgd for the rest", UNEQUAL),
    "a rank without rows": Case("narrow", "sibp exact", (4, 0, 5)),
    "a rank without rows, gathered": Case("wide", "sibp cg:3", (4, 0, 5)),
    "clipped": Case("norms", "sgd for the rest", UNEQUAL, clip=0.1),
    "accumulated": Case("norms", "sgd for the rest", UNEQUAL, passes=2),
    "within DDP": Case("norms", "sgd for the rest", PAIR, ddp=True),
}
BAD = {
    f"infinite, {net}, {method}": Case(net, method, PAIR, bad=0)
    for net in ("wide", "narrow")
    for method in ("proxbp exact", "proxbp cg:2")
}


def without_option(rank: int, group: dist.ProcessGroup) -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2), process_group=group)
    optimizer = SIBP(model)
    model(torch.ones(2, 3))
    del rank, optimizer


def another_model(rank: int, group: dist.ProcessGroup) -> None:
    SIBP(nn.Linear(3, 2 + rank), data_parallel=group)


def another_step(rank: int, group: dist.ProcessGroup) -> None:
    model = nn.Linear(3, 2)
    optimizer = SIBP(model, lr=0.1 + rank, data_parallel=group)
    F.cross_entropy(model(torch.ones(2, 3)), torch.zeros(2, dtype=torch.long)).backward()
    optimizer.step()


def no_layer(rank: int, group: dist.ProcessGroup) -> None:
    model = nn.LayerNorm(3)
    optimizer = SIBP(model, data_parallel=group)
    model(torch.rand(2 + rank, 3)).mean().backward()
    optimizer.step()


def authors_solver(rank: int, group: dist.ProcessGroup) -> None:
    SIBP(nn.Linear(3, 2 + rank), solver="paper", data_parallel=group)


def one_rank_dies(rank: int, group: dist.ProcessGroup) -> None:
    model = nn.Linear(3, 2)
    optimizer = SIBP(model, data_parallel=group)
    if rank == 1:
        os._exit(7)
    F.cross_entropy(model(torch.ones(2, 3)), torch.zeros(2, dtype=torch.long)).backward()
    optimizer.step()


def alone(rank: int, group: dist.ProcessGroup) -> bool:
    del rank
    return SIBP(nn.Linear(3, 2), data_parallel=group).parallel is None


REFUSED = {
    without_option: "RuntimeError: DistributedDataParallel averages",
    another_model: "ValueError: data_parallel: rank 1 holds another model than rank 0: bias (2,)",
    another_step: "RuntimeError: layer '': the ranks differ in its lr;",
    no_layer: "RuntimeError: data_parallel: no layer with a proximal subproblem was in the forward pass",
    authors_solver: "ValueError: solver='paper' cannot be data_parallel",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    jobs = [(name, case.on_rank, len(case.parts)) for name, case in (CASES | BAD).items()]
    jobs += [("alone", alone, 1)]
    jobs += [(job.__name__, job, 2) for job in REFUSED]
    jobs += [("one rank dies", one_rank_dies, 2)]
    return ranks.run(jobs, 3, tmp_path_factory.mktemp("ranks"))


def of_ranks(results: list[dict[str, Any]], name: str, case: Case) -> list[dict[str, Any]]:
    outcomes = [results[rank][name] for rank in range(len(case.parts))]
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_ranks_take_the_steps_of_one_process(results, name):
    case = CASES[name]
    model = case.model()
    expected = case.train(model, METHODS[case.method](model))
    first, *others = of_ranks(results, name, case)
    for step, weights in enumerate(expected):
        torch.testing.assert_close(first["weights"][step], weights, rtol=1e-9, atol=1e-9)
        assert all(torch.equal(other["weights"][step], first["weights"][step]) for other in others)
    moved = (expected[-1] - torch.cat([p.flatten() for p in case.model().parameters()])).abs().max()
    assert moved > 1e-3


@pytest.mark.parametrize("name", BAD)
def test_an_infinite_input_on_one_rank_moves_no_rank(results, name):
    case = BAD[name]
    start = torch.cat([p.detach().flatten() for p in case.model().parameters()])
    for outcome in of_ranks(results, name, case):
        assert torch.equal(outcome["weights"][0], start)
        assert outcome["weights"][-1].isfinite().all()
        assert not torch.equal(outcome["weights"][-1], start)
