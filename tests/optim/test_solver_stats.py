"""What `solver_stats` reports, against the displacement itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP, ProxBP


@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_the_relative_change_is_that_of_the_solve_whatever_becomes_of_the_step(method):
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
