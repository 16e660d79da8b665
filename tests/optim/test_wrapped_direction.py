"""What `Preconditioned` shares with its direction: passes, state, and the model that they belong to."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, Preconditioned

F64 = torch.float64
ADAM = partial(torch.optim.Adam, lr=0.02)


class Stopping(nn.Module):
    """Raises in the forward pass once `stopped` is set."""

    stopped = False

    def forward(self, x: Tensor) -> Tensor:
        if self.stopped:
            raise KeyboardInterrupt
        return x


def net() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3), Stopping())
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), head).double()


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, torch.arange(rows) % 3


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_a_batch_after_an_interrupted_one_has_its_own_size():
    changes = []
    for interrupted in (True, False):
        model, (x, y) = net(), batch()
        optimizer = Preconditioned(SIBP(model), ADAM)
        if interrupted:
            model[2][2].stopped = True
            with pytest.raises(KeyboardInterrupt):
                model(batch(3)[0])
            model[2][2].stopped = False
        optimizer.zero_grad()
        F.cross_entropy(model[2](model[:2](x)), y).backward()
        changes.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-12, atol=0)


def test_dropping_a_copy_frees_its_model():
    optimizer = copy.deepcopy(Preconditioned(SIBP(net(), direction_only=True), ADAM))
    model, direction = optimizer.direction.model, weakref.ref(optimizer.direction)
    train(model, optimizer, 1)
    del optimizer
    gc.collect()
    assert direction() is None
    assert type(model[2][1]) is not nn.Linear


def test_a_direction_that_has_stepped_itself_can_be_wrapped_and_saved():
    """Its fallback's state for the norm is not the outer optimizer's."""
    model, other = net(), net()
    direction = SIBP(model)
    train(model, direction, 2)
    optimizer, again = Preconditioned(direction, ADAM), Preconditioned(SIBP(other), ADAM)
    train(model, optimizer, 2)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2)
    train(other, again, 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
