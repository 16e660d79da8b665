"""Ranks that each hold a part of the batch take the steps of one process that holds it all."""

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import METHODS, NETS, STEPS, Case
from torch import nn

from sibp import SIBP
from sibp.optim import parallel
from sibp.prox.solvers import nonlinear

PAIR, UNEQUAL = (5, 5), (6, 1, 3)
SEARCHING = ["auto", "auto, sum", "line search"]  # its ranks exchange losses, too
PLAIN = [method for method in METHODS if method not in ("sgd for the rest", *SEARCHING)]
CASES = {
    **{f"{net}, {method}": Case(net, method, PAIR) for net in ("wide", "narrow", "convolutions") for method in PLAIN},
    **{f"unequal, {net}, sibp exact": Case(net, "sibp exact", UNEQUAL) for net in NETS},
    **{f"unequal, {net}, sibp cg:3": Case(net, "sibp cg:3", UNEQUAL) for net in NETS},
    **{f"unequal, {net}, {method}": Case(net, method, UNEQUAL) for net in ("norms",) for method in SEARCHING},
    **{f"small loss, {method}": Case("norms", method, UNEQUAL, unit=1e-4) for method in ("auto", "auto, sum")},
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
    del rank
    SIBP(nn.Linear(3, 2), solver="paper", data_parallel=group)


def one_infinite_neuron(rank: int, group: dist.ProcessGroup) -> bool:
    """Whether the weights moved, by a difference that is infinite for a neuron of the second rank only."""
    model = nn.Linear(40, 4)
    optimizer = SIBP(model, solver="exact", data_parallel=group)
    before = model.weight.clone()
    (model(torch.ones(2 + rank, 40)) * torch.tensor([1.0, 1.0, 1.0, torch.inf])).sum().backward()
    optimizer.step()
    return not torch.equal(model.weight, before)


GENERATOR = torch.Generator().manual_seed(1)
EQUAL_ROWS = torch.rand(1, 40, generator=GENERATOR) + 1e-2 * torch.rand(10, 40, generator=GENERATOR)


def nothing_fits_half_of_the_neurons(x: torch.Tensor, first: int, solver: str, **options: Any) -> torch.Tensor:
    """The weights after a step from rows that are all but equal, whose error signals cancel for two of four neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 4), nn.ReLU())
    nn.init.constant_(model[0].bias, 9.0)
    optimizer = SIBP(model, lr=0.1, prox_weight=1e-2, solver=solver, loss_average=False, **options)
    signs = (-1.0) ** torch.arange(first, first + len(x)).unsqueeze(1)
    (model(x) * torch.cat([torch.ones(len(x), 2), signs.expand(-1, 2)], 1)).sum().backward()
    optimizer.step()
    return model[0].weight.detach()


def doubtful_on_one_rank(rank: int, group: dist.ProcessGroup) -> list[torch.Tensor]:
    rows = EQUAL_ROWS[5 * rank : 5 * rank + 5]
    return [
        nothing_fits_half_of_the_neurons(rows, 5 * rank, solver, data_parallel=group) for solver in ("cg:3", "exact")
    ]


def copies(rank: int, group: dist.ProcessGroup) -> list[bool]:
    """Whether a copy and a pickle of the optimizer still train in parallel; outside a group neither does."""
    del rank, group
    optimizer = SIBP(nn.Linear(3, 2), data_parallel=True)
    copied, pickled = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    return [twin.parallel is not None and twin.parallel.exchange.size == 3 for twin in (copied, pickled)]


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
    jobs += [("one infinite neuron", one_infinite_neuron, 2), ("copies", copies, 3)]
    jobs += [("doubtful on one rank", doubtful_on_one_rank, 2)]
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
def test_an_infinite_input_on_one_rank_changes_no_rank(results, name):
    case = BAD[name]
    start = torch.cat([p.detach().flatten() for p in case.model().parameters()])
    for outcome in of_ranks(results, name, case):
        assert torch.equal(outcome["weights"][0], start)
        assert outcome["weights"][-1].isfinite().all()
        assert not torch.equal(outcome["weights"][-1], start)


def test_an_infinite_neuron_on_one_rank_changes_no_rank(results):
    assert [result["one infinite neuron"] for result in results[:2]] == [False, False]


def test_ranks_whose_neurons_need_different_precisions_agree(results, monkeypatch):
    """Neurons with doubtful answers, all on the second rank, are solved again in float64 as displacements."""
    again, found = nonlinear._in_double_precision, []
    monkeypatch.setattr(nonlinear, "_in_double_precision", lambda *given: found.append(1) or again(*given))
    alone = nothing_fits_half_of_the_neurons(EQUAL_ROWS, 0, "cg:3")
    assert found
    for k, solver in enumerate(("cg:3", "exact")):
        alone = nothing_fits_half_of_the_neurons(EQUAL_ROWS, 0, solver)
        first, second = (result["doubtful on one rank"][k] for result in results[:2])
        assert torch.equal(first, second)
        torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("job", REFUSED, ids=lambda job: job.__name__)
def test_invalid_uses_are_refused_on_every_rank(results, job):
    for result in results[:2]:
        assert result[job.__name__].startswith(REFUSED[job])


def test_a_failed_rank_ends_the_others(results):
    assert [result["exit code"] for result in results] == [0, 7, 0]
    assert results[0]["one rank dies"].startswith("RuntimeError: ")


def test_replicas_train_in_parallel_but_a_single_process_does_not(results):
    assert all(result["copies"] == [True, True] for result in results)
    assert results[0]["alone"] is True


def test_bytes_received_equal_a_calculation(results):
    """Two ranks with 5 rows each, 8 bytes a number, 10 settings a layer to agree on."""
    # gather: A, the differences of half of the neurons, coefficients of half of the neurons, a flag
    # sum: Phi' Phi (one half), Phi' R, ||R||^2; what is summed travels there and back, by halves
    wide = {"0": 5 * 40 + 5 * 4 + 10 * 4 + 1, "2": 8 * 9 // 2 + 8 * 3 + 1}
    narrow = {"0": 4 * 5 // 2 + 4 * 5 + 1, "2": 6 * 7 // 2 + 6 * 3 + 1}
    for name, numbers in {"wide, sibp exact": wide, "narrow, sibp exact": narrow}.items():
        for result in results[:2]:
            plans = result[name]["plans"]
            assert {layer: plan.received for layer, plan in plans.items()} == {k: 8 * v for k, v in numbers.items()}
            assert result[name]["received"] == STEPS * 8 * (sum(numbers.values()) + 2 * 10)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.net not in ("norms", "positions", "slopes")]
)
def test_bytes_received_equal_the_formula(results, name):
    ranks = len(CASES[name].parts)
    for outcome in of_ranks(results, name, CASES[name]):
        agreed = 10 * 8 * (ranks - 1) * len(outcome["plans"])
        planned = sum(plan.received for plan in outcome["plans"].values())
        assert outcome["received"] == pytest.approx(STEPS * (planned + agreed))


def test_each_solver_works_in_both_modes(results):
    """Hidden layers are among them; otherwise the cases above would show less than intended."""
    modes = {
        (case.method, of_ranks(results, name, case)[0]["plans"]["0"].mode)
        for name, case in CASES.items()
        if case.net in ("wide", "narrow", "convolutions")
    }
    assert modes >= {(method, mode) for method in ("sibp exact", "sibp cg:3") for mode in ("gather", "sum")}


def test_metrics_of_summed_rows_equal_one_process(results):
    case = CASES["convolutions, sibp cg:3"]
    model = case.model()
    optimizer = METHODS[case.method](model)
    case.train(model, optimizer)
    expected = optimizer.solver_stats()
    for outcome in of_ranks(results, "convolutions, sibp cg:3", case):
        for key in ("decrease", "step_length", "relative_change", "status"):
            assert outcome["stats"]["0"][key] == pytest.approx(expected["0"][key], rel=1e-8)


@pytest.fixture(params=["cpu", "cuda"])
def device_of_a_group(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """The device that a process group of this process alone exchanges on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for key, value in ranks.SETTINGS.items():
        monkeypatch.setenv(key, value)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl" if request.param == "cuda" else "gloo", store=store, rank=0, world_size=1)
    yield torch.device(request.param)
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", ["gather", "sum"])
@pytest.mark.parametrize("method", ["sibp exact", "sibp cg:3", "proxbp gradient"])
def test_both_modes_on_every_device(monkeypatch, device_of_a_group, method, mode):
    """With a single rank, as there may be a single GPU: nothing is communicated, but everything is computed."""
    monkeypatch.setattr(parallel, "plan", lambda *args, **kwargs: parallel.Plan(mode, 0))
    case = Case("norms", method, (10,))
    weights = []
    for shared in (parallel.DataParallel(parallel.Exchange(None)), None):
        model = case.model().to(device_of_a_group)
        optimizer = METHODS[method](model)
        optimizer.parallel = shared
        weights.append(case.train(model, optimizer)[-1])
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)


def test_without_torch_distributed_the_error_is_one_sentence():
    with pytest.raises(RuntimeError, match=r"needs torch\.distributed: call torch\.distributed\.init_process_group"):
        SIBP(nn.Linear(3, 2), data_parallel=True)
    with pytest.raises(TypeError, match="Invalid data_parallel: 'gloo'"):
        SIBP(nn.Linear(3, 2), data_parallel="gloo")  # pyright: ignore[reportArgumentType]
