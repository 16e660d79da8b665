"""Activations that users register, and those with learned numbers of their own: in the subproblem like any other."""

import gc
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, register_activation
from sibp.activations import registry

F64 = torch.float64


class Net(nn.Module):
    """Two linear layers with a given function between them."""

    def __init__(self, call) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 7, dtype=F64), nn.Linear(7, 3, dtype=F64)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.first(x)))


def first_change(call, solver: str = "cg:4") -> Tensor:
    """W_old - W_new of the first layer, whose activation it is."""
    model = Net(call)
    optimizer = SIBP(model, 0.8, 0.5, solver)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    F.cross_entropy(model(x), torch.arange(6) % 3).backward()
    optimizer.remove()
    assert model.first.weight.grad is not None
    return model.first.weight.grad


def assert_inside(call, known) -> None:
    """Checks that `call` is inside the subproblem like `known`, which computes the same."""
    expected = first_change(known)
    torch.testing.assert_close(first_change(call), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(expected, first_change(known, "exact"), rtol=1e-3)


def swish2(z: Tensor) -> Tensor:
    """LeakyReLU with a slope of 0.3, computed differently."""
    return torch.maximum(z, 0.3 * z)


def leaky(z: Tensor) -> Tensor:
    return F.leaky_relu(z, 0.3)


@pytest.mark.parametrize("slope", [torch.cos, None])
@pytest.mark.parametrize("fn", [torch.sin, Tensor.sin, torch.sin_])
def test_a_function_of_torch_is_found_however_it_is_called(fn, slope):
    calls = [torch.sin, Tensor.sin, lambda z: z.sin(), torch.sin_, lambda z: z.sin_(), lambda z: torch.sin(input=z)]
    linearised = first_change(torch.sin, "exact")
    for call in calls:
        torch.testing.assert_close(first_change(call), linearised, rtol=1e-12, atol=1e-14)
    assert register_activation(fn, torch.sin, slope) is fn
    inside = [first_change(call) for call in calls]
    assert not torch.allclose(inside[0], linearised, rtol=1e-3)
    for change in inside[1:]:
        torch.testing.assert_close(change, inside[0], rtol=1e-12, atol=1e-14)


def test_the_subproblem_uses_the_given_argument():
    """Against activations that are known from the start: with further arguments, and through torch's own modules."""
    register_activation(F.celu, F.celu)
    assert_inside(nn.CELU(1.0), nn.ELU())
    assert_inside(lambda z: torch.celu_(z, 1.0), nn.ELU())
    register_activation(F.threshold, F.threshold)
    assert_inside(nn.Threshold(0.0, 0.0), nn.ReLU())
    assert_inside(nn.Threshold(0.0, 0.0, inplace=True), nn.ReLU())


def test_a_registered_function_is_found_by_its_name_and_as_returned(monkeypatch):
    module, own = sys.modules[__name__], swish2
    monkeypatch.setattr(module, "swish2", own)  # put back afterwards
    returned = register_activation(own, own)
    assert_inside(returned, leaky)
    assert_inside(lambda z: swish2(z), leaky)
    assert swish2.__name__ == "swish2"
    z = torch.linspace(-2, 2, 5)
    assert torch.equal(swish2(z), leaky(z))


def test_a_registered_module_class_is_found_in_all_instances():
    class Leaky(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.maximum(z, 0.3 * z)

    module = Leaky()
    assert register_activation(Leaky, leaky) is Leaky
    assert_inside(module, leaky)
    assert_inside(Leaky(), leaky)
    register_activation(Leaky, leaky)  # again: nothing changes
    assert_inside(module, leaky)
    z = torch.linspace(-2, 2, 5)
    assert torch.equal(module(z), leaky(z))
    with torch.no_grad():
        assert torch.equal(module(z), leaky(z))


def test_a_class_with_parameters_is_refused_with_the_way_out():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, z: Tensor) -> Tensor:
            return self.scale * z.tanh()

    register_activation(Scaled, torch.tanh)
    with pytest.raises(TypeError, match="Scaled has parameters of its own: register a function that takes them"):
        first_change(Scaled())


@pytest.mark.parametrize(
    ("fn", "value", "slope", "error", "message"),
    [
        (torch.sin, torch.cos, None, ValueError, "value does not return what sin returns"),
        (torch.sin, torch.sin, torch.sin, ValueError, "slope of sin is not the derivative"),
        (torch.softmax, lambda z: z.softmax(-1), None, ValueError, "softmax is not elementwise"),
        (torch.sign, torch.sign, torch.ones_like, ValueError, "slope of sign is not the derivative"),
        (torch.sin, lambda z: z.detach().sin(), None, ValueError, "autograd cannot differentiate value of sin"),
        (nn.Tanh(), torch.tanh, None, TypeError, "is neither a function nor a class of modules"),
        (nn.Tanh, torch.tanh, None, TypeError, "Tanh is torch's own class"),
        ("tanh", torch.tanh, None, TypeError, "'tanh' is neither a function nor a class"),
        (torch.sin, None, None, TypeError, "value must be a function, not None"),
        (torch.sin, torch.sin, 1.0, TypeError, "slope must be a function, not 1.0"),
    ],
)
def test_invalid_registrations_are_refused_at_once(fn, value, slope, error, message):
    before = dict(registry._rows)
    with pytest.raises(error, match=message):
        register_activation(fn, value, slope)
    assert registry._rows == before


def snake(z: Tensor, frequency: Tensor) -> Tensor:
    """Ziyin, Hartwig & Ueda 2020: z + sin^2(frequency z) / frequency."""
    return z + torch.sin(frequency * z).square() / frequency


@pytest.mark.parametrize("shape", [(), (1,), (7,), (6, 1), (6, 7)])
def test_a_learned_argument_is_constant_in_the_subproblem_and_gets_its_gradient(shape):
    """The step is that for fixed numbers; their gradient is autograd's, with the last layer's new weights."""
    frequency = torch.linspace(0.8, 1.4, torch.Size(shape).numel(), dtype=F64).reshape(shape).requires_grad_()
    unknown = first_change(lambda z: snake(z, frequency))  # the last layer is linear, so its step is the same
    expected, frequency.grad = frequency.grad, None
    known = register_activation(snake, snake)
    change = first_change(lambda z: known(z, frequency))
    torch.testing.assert_close(frequency.grad, expected, rtol=1e-9, atol=1e-12)
    numbers = frequency.detach().expand(6, 7)
    fixed = register_activation(lambda z: snake(z, numbers if z.shape == (6, 7) else numbers[0, 0]), _fixed(numbers))
    torch.testing.assert_close(change, first_change(fixed), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(change, unknown, rtol=1e-3)


def _fixed(numbers: Tensor):
    """`snake` without further arguments; what is tried at registration has another shape."""
    return lambda z: snake(z, numbers if z.shape == (6, 7) else numbers[0, 0])


def test_an_argument_that_changes_the_shape_is_refused():
    known = register_activation(snake, snake)
    with pytest.raises(TypeError, match=r"snake: an argument of shape \(2, 6, 7\) does not broadcast to \(6, 7\)"):
        first_change(lambda z: known(z, torch.ones(2, 6, 7, dtype=F64)))


class ConvNet(nn.Module):
    """A convolution with an activation, and a linear layer."""

    def __init__(self, activation: nn.Module, groups: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, groups=groups, dtype=F64)
        self.activation = activation
        self.last = nn.Linear(4, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.conv(x)).mean((2, 3)))


class PerChannel(nn.Module):
    """LeakyReLU with a slope per channel, channel by channel, which no subproblem recognises."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(slopes.clone())

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([torch.where(c > 0, c, a * c) for c, a in zip(z.unbind(1), self.weight, strict=True)], 1)


@pytest.mark.parametrize("batch", [2, 40])  # with and without materialised patches
def test_prelu_has_a_slope_for_each_channel_of_a_convolution(batch):
    """Its step is that of one convolution a channel, each with the LeakyReLU of its slope."""
    slopes = torch.tensor([0.1, 0.3, 0.6, -0.2], dtype=F64)
    x = torch.randn(batch, 2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    y = torch.arange(batch) % 3

    def step(activation: nn.Module) -> ConvNet:
        model = ConvNet(activation)
        optimizer = SIBP(model, 0.8, 0.5, "cg:4", fallback=lambda params: torch.optim.SGD(params, lr=1.0))
        F.cross_entropy(model(x), y).backward()
        optimizer.remove()
        return model

    prelu = nn.PReLU(4, dtype=F64)
    with torch.no_grad():
        prelu.weight.copy_(slopes)
    found = step(prelu)
    assert found.conv.weight.grad is not None
    for channel, slope in enumerate(slopes.tolist()):
        known = step(_Slopes(slopes, channel, slope))
        assert known.conv.weight.grad is not None
        torch.testing.assert_close(
            found.conv.weight.grad[channel], known.conv.weight.grad[channel], rtol=1e-9, atol=1e-12
        )
    linearised = step(PerChannel(slopes))
    assert linearised.conv.weight.grad is not None
    assert not torch.allclose(found.conv.weight.grad, linearised.conv.weight.grad, rtol=1e-3)
    # The slopes' gradient is that of the loss, through the last layer's new weights.
    torch.testing.assert_close(prelu.weight.grad, linearised.activation.weight.grad, rtol=1e-9, atol=1e-12)


class _Slopes(nn.Module):
    """The same activation in value, but the subproblem contains the LeakyReLU with one channel's slope."""

    def __init__(self, slopes: Tensor, channel: int, slope: float) -> None:
        super().__init__()
        self.slopes, self.slope = slopes, slope

    def forward(self, z: Tensor) -> Tensor:
        a = F.leaky_relu(z, self.slope)
        factors = torch.where(z.detach() > 0, 1.0, (self.slopes / self.slope)[:, None, None])
        return a * factors


def test_prelu_is_trained_by_the_fallback():
    model = nn.Sequential(nn.Linear(5, 7), nn.PReLU(), nn.Linear(7, 3))
    optimizer = SIBP(model, 0.3, 1.0)
    x, y = torch.randn(20, 5), torch.arange(20) % 3
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert model[1].weight.item() != 0.25
    rows = {line.split()[0]: line.split() for line in optimizer.summary().splitlines()[3:]}
    assert rows["0"][-3:] == ["prelu", "cg:5", "proximal"]
    assert rows["1"][-1] == "explicit"


def test_a_learned_argument_keeps_no_graph():
    """A network may compute an activation's argument; the layer lets go of that graph with the pass."""
    known, made = register_activation(snake, snake), []

    def call(z: Tensor) -> Tensor:
        frequency = torch.ones(3, dtype=F64, requires_grad=True).exp().mean()
        made.append(weakref.ref(frequency))
        return known(z, frequency)

    model = Net(call)
    optimizer = SIBP(model, 0.1, 1.0)
    model(torch.ones(2, 5, dtype=F64)).sum().backward()
    gc.collect()
    assert made[0]() is None
    assert "snake" in optimizer.summary()
