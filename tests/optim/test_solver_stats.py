"""What `solver_stats` reports, against the displacement itself."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP, ProxBP
from sibp.optim.solvers import as_update
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.status import Status


@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_the_relative_change_is_of_the_solve_even_if_the_step_is_changed(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    optimizer = method(model, lr=0.5, prox_weight=0.3)
    F.cross_entropy(model(torch.randn(9, 6).double()), torch.arange(9) % 3).backward()
    expected = {
        name: torch.cat([p.grad.flatten() for p in model[int(name)].parameters()]).norm()
        / torch.cat([p.detach().flatten() for p in model[int(name)].parameters()]).norm()
        for name in ("0", "2")
    }
    nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
    for name, stats in optimizer.solver_stats().items():
        assert stats["relative_change"] == pytest.approx(float(expected[name]), rel=1e-9)


@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_the_relative_change_remains_after_the_batch(method):
    """Metrics are read after the loop has overwritten the batch in its buffer."""
    changes = []
    for overwritten in (False, True):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
        optimizer = method(model, lr=0.5, prox_weight=0.3)
        F.cross_entropy(model(x), torch.arange(4) % 3).backward()
        if overwritten:
            x.fill_(1e3)
        changes.append([stats["relative_change"] for stats in optimizer.solver_stats().values()])
    assert changes[1] == pytest.approx(changes[0], rel=1e-4)


@pytest.mark.parametrize("lr", [1e-320, 1e-200])
@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_a_step_size_whose_square_is_no_float_is_measured(method, lr):
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
    optimizer = method(model, lr=lr)
    F.cross_entropy(model(x), torch.arange(4) % 3).backward()
    assert [stats["relative_change"] for stats in optimizer.solver_stats().values()] == [0, 0]


@pytest.mark.parametrize("afterwards", [False, True])
@pytest.mark.parametrize("side", [Span, Direct])
def test_a_long_step_is_measured_and_a_short_one_bounded(side, afterwards):
    features = DenseFeatures(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    R = 1e-3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 1e3, 1e6, 1e28):
        solution = solve_linear(side(features), R if afterwards else scale * R, 1e-3)
        update, _ = as_update(solution.scaled(scale) if afterwards else solution)
        weight, bias = update.W_decrease.double(), update.b_decrease.double()
        length, numbers = float(weight.square().sum() + bias.square().sum()), weight.numel() + bias.numel()
        if scale == 1e28:  # its square overflows float32
            assert update.change_bound == float("inf")
            assert length == 0
        elif length > numbers:
            assert update.change_bound == pytest.approx(length, rel=1e-4)
        else:
            assert length * (1 - 1e-4) <= update.change_bound


@pytest.mark.parametrize(("rows", "prox_weight"), [(20, 1.0), (300, 1.0), (300, 1e-3)])
@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_metrics_keep_neither_inputs_nor_the_gram_matrix(method, rows, prox_weight, monkeypatch):
    made, find = [], Span.find_gram
    monkeypatch.setattr(Span, "find_gram", lambda self: made.append(find(self)) or made[-1])
    model, x = nn.Sequential(nn.Linear(400, 9)), torch.randn(rows, 400)
    optimizer = method(model, prox_weight=prox_weight, solver="exact")
    F.cross_entropy(model(x), torch.arange(rows) % 9).backward()
    gram, inputs = weakref.ref(made.pop()), weakref.ref(x)
    del x
    gc.collect()
    assert inputs() is None
    assert gram() is None
    assert 0 < optimizer.solver_stats()["0"]["decrease"] <= 1


@pytest.mark.parametrize("solver", ["exact", "cg:2"])
def test_a_step_of_size_zero_has_metrics_too(solver):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = SIBP(model, lr=0.0, solver=solver)
    F.cross_entropy(model(torch.randn(4, 6)), torch.arange(4) % 3).backward()
    stats = optimizer.solver_stats()[""]
    assert stats["decrease"] == stats["relative_change"] == 0
    assert stats["status"] == Status.SOLVED
