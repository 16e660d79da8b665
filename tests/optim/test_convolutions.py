"""A convolution takes the step of the linear layers on its patches that it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ConvCase, UnfoldedConv, conv_cases
from torch import Tensor, nn

from sibp import SIBP, ProxBP

METHODS = {
    "sibp exact": lambda model: SIBP(model, 0.3, 0.7, "exact"),
    "sibp cg:4": lambda model: SIBP(model, 0.3, 0.7, "cg:4"),
    "proxbp exact": lambda model: ProxBP(model, 0.3, 0.7),
    "proxbp cg:3": lambda model: ProxBP(model, 0.3, 0.7, "cg:3"),
    "proxbp gradient": lambda model: ProxBP(model, 0.01, 0.7, "gradient"),
}


class Scaled(nn.Module):
    """A layer behind an elementwise scale, whose gradient shows what the layer sends back."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.scale = torch.ones(shape[1:], dtype=torch.float64, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale)


def backward(layer: nn.Module, x: Tensor, method: str) -> Tensor:
    """Runs one backward pass of a mean loss; returns the gradient that reached the scale."""
    model = Scaled(layer, tuple(x.shape))
    optimizer = METHODS[method](model)
    output = model(x)
    weights = torch.linspace(-1, 2, output[0].numel(), dtype=x.dtype).reshape(output.shape[1:])
    (output * weights).sum().div(len(x)).backward()
    assert optimizer.solver_stats()
    assert model.scale.grad is not None
    return model.scale.grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", conv_cases(), ids=lambda case: case.name)
def test_step_equals_that_of_linear_layers_on_patches(case: ConvCase, method: str):
    torch.manual_seed(0)
    conv = case.make()
    twin = UnfoldedConv(conv)
    x = torch.randn(case.shape, dtype=torch.float64)
    torch.testing.assert_close(twin(x), conv(x).relu(), rtol=1e-12, atol=1e-12)
    sent, expected = backward(nn.Sequential(conv, nn.ReLU()), x, method), backward(twin, x, method)
    torch.testing.assert_close(sent, expected, rtol=1e-10, atol=1e-12)
    for key, parameter in conv.named_parameters():
        change = torch.cat([linear.get_parameter(key).grad for linear in twin.linears]).reshape(parameter.shape)
        assert change.abs().max() > 1e-4
        torch.testing.assert_close(parameter.grad, change, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_relative_weights_are_measured_in_mean_squared_patches_of_all_groups(method):
    """25 rows [patch, 1] in each of two groups: lam by hand gives the same step."""
    x = torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patches = torch.cat([part.unfold(2, 3, 1).movedim(1, 2).reshape(25, 6) for part in x.chunk(2, 1)])
    lam = 3.0 * float((patches.square().sum(1) + 1).mean())
    changes = []
    for prox_weight, scaling in ((3.0, "relative"), (lam, "absolute")):
        torch.manual_seed(1)
        conv = nn.Conv1d(4, 6, 3, groups=2, dtype=torch.float64)
        optimizer = method(conv, 0.7, prox_weight, prox_weight_scaling=scaling)
        conv(x).square().sum((1, 2)).mean().backward()
        assert optimizer.solver_stats()
        changes.append([p.grad for p in conv.parameters()])
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_unbatched_image_is_a_batch_of_one(method: str):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    grads = []
    for batched in (False, True):
        torch.manual_seed(1)
        conv = nn.Conv2d(2, 3, 3, dtype=torch.float64)
        model = nn.Sequential(conv, nn.ReLU())
        optimizer = METHODS[method](model)
        model(x[None] if batched else x).square().sum().backward()
        assert optimizer.solver_stats()
        grads.append(conv.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    dims=st.integers(1, 2),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    batch=st.integers(1, 4),
    size=st.integers(6, 10),  # a dilated kernel covers up to 5 entries of the second, shorter axis
)
def test_convolutions_of_any_shape(dims, groups, channels, kernel, stride, padding, dilation, bias, batch, size):
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    torch.manual_seed(0)
    conv = kind(
        groups * channels[0], groups * channels[1], kernel, stride, padding, dilation, groups, bias, dtype=torch.float64
    )
    twin = UnfoldedConv(conv)
    x = torch.randn(batch, groups * channels[0], *(size, size - 1)[:dims], dtype=torch.float64)
    sent, expected = backward(nn.Sequential(conv, nn.ReLU()), x, "sibp cg:4"), backward(twin, x, "sibp cg:4")
    torch.testing.assert_close(sent, expected, rtol=1e-9, atol=1e-11)
    for key, parameter in conv.named_parameters():
        change = torch.cat([linear.get_parameter(key).grad for linear in twin.linears]).reshape(parameter.shape)
        torch.testing.assert_close(parameter.grad, change, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [5, 16])
def test_the_inputs_error_signal_has_the_inputs_memory_layout(channels, layout):
    """Holds for both orders of the products; which one is used depends on whether channels are a multiple of 16."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, channels, 3, padding=1).double()
    x = torch.randn(4, 16, 6, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    D = torch.randn(4, channels, 6, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(conv(x), x, D)
    optimizer = ProxBP(conv, lr=0.1, prox_weight=1.0)  # propagates the error signal through the old weights
    conv(x).backward(D)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-12)
    assert x.grad.is_contiguous(memory_format=layout)
    optimizer.step()
