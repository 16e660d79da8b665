"""The published step, computed trial by trial from the weights, is `solver="paper"`'s."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP
from sibp.bench.nets import Case
from sibp.bench.published import step


@pytest.mark.parametrize(
    ("case", "eta", "lam"),
    [(Case("20-16-12-8-5", 10), 1.0, 0.3), (Case("6-5-3", 7), 0.1, 1.0), (Case("10-8-4", 1), 10.0, 10.0)],
    ids=str,
)
def test_weights_equal_paper_mode_after_some_steps(case, eta, lam):
    ours, theirs = case.model().double(), case.model().double()
    optimizer = SIBP(ours, lr=eta, prox_weight=lam, solver="paper")
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        x = torch.rand(case.batch, *case.shape, generator=generator, dtype=torch.float64)
        y = torch.randint(case.classes, (case.batch,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(ours(x), y).backward()
        optimizer.step()
        step([layer for layer in theirs if isinstance(layer, nn.Linear)], x, y, eta, lam)
    for p, q, first in zip(ours.parameters(), theirs.parameters(), case.model().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
        assert (q - first).abs().max() > 1e-6


def test_a_dead_layer_is_unchanged():
    net = Case("4-3-2", 5).model().double()
    hidden = net[0]
    assert isinstance(hidden, nn.Linear)
    with torch.no_grad():
        hidden.bias.fill_(-100.0)
    before = [p.clone() for p in hidden.parameters()]
    step([hidden, net[2]], torch.rand(5, 4, dtype=torch.float64), torch.arange(5) % 2, 1e-3, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(hidden.parameters(), before, strict=True))
