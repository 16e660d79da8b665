"""A proximal weight that grows, against `SIBP` with the weights and step sizes that it stands for, set by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP
from sibp.experiment.schedule import Schedule
from sibp.optim.sibp_growing import GrowingSIBP

ETA, LAM, STEPS = 0.7, 2.0, 6


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(20, 6, generator=generator).double(), torch.randint(3, (20,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("solver", ["cg:3", "exact"])
@pytest.mark.parametrize("lr", [1.0, 0.25])
def test_lr_divides_only_the_proximal_weight(solver: str, lr: float):
    one, other = net(), net()
    growing = GrowingSIBP(one, lr, ETA, LAM, solver)
    by_hand = SIBP(other, ETA, LAM / lr, solver)
    for seed in range(3):
        step(one, growing, seed)
        step(other, by_hand, seed)
    for p, q, start in zip(one.parameters(), other.parameters(), net().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
        assert not torch.equal(p, start)


def test_a_schedule_equals_a_growing_proximal_weight():
    """Half a cosine over six steps, warmed up over two."""
    one, other = net(), net()
    growing, plain = GrowingSIBP(one, 1.0, ETA, LAM, "cg:3"), SIBP(other, ETA, LAM, "cg:3")
    schedules = Schedule(growing, "cosine", "lr", STEPS, 2), Schedule(plain, "cosine", "prox_weight", STEPS, 2)
    for k in range(STEPS):
        for model, optimizer, schedule in zip((one, other), (growing, plain), schedules, strict=True):
            schedule.set(k)
            step(model, optimizer, seed=k)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_with_lr_0_nothing_changes():
    model = net()
    optimizer = GrowingSIBP(model, 0.0, ETA, LAM, "cg:3")
    step(model, optimizer, seed=0)
    for p, start in zip(model.parameters(), net().parameters(), strict=True):
        torch.testing.assert_close(p, start, rtol=0, atol=0)


def test_a_copy_has_the_same_neuron_step():
    model = net()
    original, copied = copy.deepcopy((GrowingSIBP(model, 1.0, ETA, LAM, "cg:3"), model))
    step(copied, original, seed=0)
    other = net()
    step(other, SIBP(other, ETA, LAM, "cg:3"), seed=0)
    for p, q in zip(copied.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_group_added_later_has_the_same_neuron_step():
    model, other = net(), net()
    part = model[:4]
    whole, grown = GrowingSIBP(other, 0.5, ETA, LAM, "cg:3"), GrowingSIBP(part, 0.5, ETA, LAM, "cg:3")
    part.append(model[4])
    grown.add_param_group({"params": model[4].parameters()})
    for seed in range(2):
        step(part, grown, seed)
        step(other, whole, seed)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_neuron_step_below_0_is_refused():
    with pytest.raises(ValueError, match="Invalid neuron_step: -1; it has to be >= 0 and finite"):
        GrowingSIBP(net(), 1.0, -1, LAM, "cg:3")
