"""AutoSIBP's steps do not become many times longer at once, whatever a single batch's loss allows."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import AutoSIBP
from sibp.optim.search import MAX_TRIALS, SearchStatus, minimise

LONGER = 30.0  # as documented


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 3)).double()


def step(net: nn.Module, optimizer: AutoSIBP, scale: float) -> float:
    """The length of a step on a loss of that scale, whose trials all find a much lower loss than the last."""
    x, y = torch.randn(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(20) % 3
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    loss = scale * F.cross_entropy(net(x), y)
    loss.backward()
    falling = itertools.count(1)
    optimizer.step(evaluate=lambda: -1e20 * next(falling), loss=loss)
    return float(sum((p.detach() - old).square().sum() for p, old in zip(net.parameters(), before, strict=True))) ** 0.5


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_step_is_at_most_thirty_times_longer_than_measured_ones(number: int):
    """Steps 0 and 3 measure the slope, steps 1 and 2 reuse the length."""
    net = model()
    optimizer = AutoSIBP(net)
    usual = [step(net, optimizer, 1e-6) for _ in range(number)]
    assert step(net, optimizer, 1e6) == pytest.approx(LONGER * usual[0], rel=1e-3)
    assert optimizer.search_stats()["status"] in (SearchStatus.TAKEN, SearchStatus.SHORTENED)


def test_a_length_that_never_suffices_is_not_taken_whole():
    """A loss that stays along a slope that promises a decrease: the shortest length tried is taken, not the longest."""
    tried = []

    def phi(alpha: float) -> float:
        tried.append(alpha)
        return 1.0

    found = minimise(phi, 1.0, 1.0, slope=-1.0)
    assert found.trials == len(tried) == MAX_TRIALS
    assert found.alpha == min(tried)
    assert found.status is SearchStatus.SHORTENED


def test_rare_samples_of_a_large_weight_do_not_end_in_infinity():
    """Batches without the rare class have a small loss, which lengths of any size lower."""
    images, digits = (torch.tensor(each) for each in load_digits(return_X_y=True))
    kept = torch.cat([(digits != 8).nonzero()[:, 0], (digits == 8).nonzero()[:16, 0]])
    x, y = images[kept].float() / 16, (digits[kept] == 8).float().unsqueeze(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = AutoSIBP(net)

    def loss_of(rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(x[rows]), y[rows], pos_weight=torch.tensor(100.0))

    for _ in range(300):
        rows = torch.randint(len(x), (50,))
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step(evaluate=lambda rows=rows: loss_of(rows))
    assert loss_of(torch.arange(len(x))).item() < 1e4
