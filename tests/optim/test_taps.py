"""Which layers are tapped and what `summary` says of them, `paused`, and what `remove` leaves behind."""

import gc
import re
import weakref
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sibp import SIBP, ProxBP

F64 = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = OrderedDict(fc1=nn.Linear(5, 6), act=nn.ReLU(), fc10=nn.Linear(6, 3))
    return nn.Sequential(layers).double()


def loss_of(model: nn.Module) -> Tensor:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    return F.cross_entropy(model(x), torch.arange(7) % 3)


def updates(optimizer: SIBP | ProxBP) -> dict[str, str]:
    """The last column of the summary, by layer."""
    rows = [line.split() for line in optimizer.summary().splitlines()[3:]]
    return {row[0]: row[-1] for row in rows}


def ordinary_gradients(model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(model), list(model.parameters())))


def test_a_layers_name_does_not_exclude_those_that_begin_like_it():
    assert updates(SIBP(net(), explicit="fc1")) == {"fc1": "explicit", "fc10": "proximal"}


def test_a_layer_is_shown_as_frozen_if_all_of_it_is():
    model = net()
    optimizer = SIBP(model)
    model.get_parameter("fc1.bias").requires_grad_(False)
    assert updates(optimizer)["fc1"] == "proximal"
    model.get_parameter("fc1.weight").requires_grad_(False)
    assert updates(optimizer)["fc1"] == "frozen"


class Twice(nn.Module):
    """Uses the pre-activation of its first layer once or twice."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.first, self.last, self.skip = nn.Linear(5, 6, dtype=F64), nn.Linear(6, 3, dtype=F64), skip

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.last(z.relu() + z if self.skip else z.relu())


@pytest.mark.parametrize(("skip", "solver"), [(False, "cg:5"), (True, "exact (linearised)")])
def test_an_activation_beside_another_use_of_its_input_is_shown_as_linearised(skip: bool, solver: str):
    model = Twice(skip=skip)
    optimizer = SIBP(model, solver="cg:5")
    loss_of(model).backward()
    name, *_, shown, update = re.split("  +", optimizer.summary().splitlines()[3])
    assert (name, shown, update) == ("first", solver, "proximal")


def test_a_learning_rate_changed_inside_its_tensor_is_checked_again():
    model = net()
    optimizer = SIBP(model, lr=torch.tensor(0.1))  # pyright: ignore[reportArgumentType]
    loss_of(model).backward()
    optimizer.param_groups[0]["lr"].fill_(-1.0)
    with pytest.raises(ValueError, match="Invalid lr"):
        loss_of(model).backward()


def test_every_parameters_steps_are_counted():
    model = net()
    optimizer = ProxBP(model)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert [optimizer.state[p]["steps"] for p in model.parameters()] == [3] * 4


def test_a_pause_inside_a_pause_does_not_end_it():
    model = net()
    expected = ordinary_gradients(model)
    optimizer = SIBP(model)
    with optimizer.paused():
        with optimizer.paused():
            pass
        torch.testing.assert_close(ordinary_gradients(model), expected, rtol=1e-12, atol=1e-15)
    assert optimizer.active()


def test_a_removed_optimizer_leaves_no_hook():
    model = nn.Sequential(net(), nn.ReLU())
    optimizer = SIBP(model)
    assert any(module._forward_hooks for module in model.modules())
    optimizer.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(type(layer) is nn.Linear for layer in model[0] if hasattr(layer, "weight"))


def test_a_direction_may_be_freed_while_another_optimizer_steps():
    """A direction and its model are a cycle, which the garbage collector frees at any time: here, inside a hook."""
    model = net()
    freed = weakref.ref(SIBP(model, direction_only=True))
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    gc.collect()
    assert freed() is not None
    del model
    hooks = [lambda *_: gc.collect() and None, lambda *_: None]  # the iteration goes on after the first
    handles = [register_optimizer_step_pre_hook(hook) for hook in hooks]
    try:
        torch.optim.SGD([weight], lr=0.5).step()
    finally:
        for handle in handles:
            handle.remove()
    assert freed() is None
    assert weight.item() == 0.5


def test_a_removed_direction_no_longer_refuses_a_scaler():
    model = net()
    direction, outer = SIBP(model, direction_only=True), torch.optim.SGD(model.parameters(), lr=0.1)
    direction.remove()
    expected = [p - 0.1 * g for p, g in zip(model.parameters(), ordinary_gradients(model), strict=True)]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model)).backward()
    scaler.step(outer)
    torch.testing.assert_close(list(model.parameters()), expected, rtol=1e-9, atol=1e-12)
