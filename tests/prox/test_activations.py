"""Slopes of the activations against autograd's derivatives and difference quotients."""

import pytest
import torch
from layer_problems import ACTIVATIONS, randn

from sibp import activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_are_those_of_torch(name):
    s, torch_function = ACTIVATIONS[name]
    # A kink, tails where exponentials over- and underflow, and the middle.
    special = torch.tensor([0.0, 1e-300, -1e-300, 3, -3, 6, 7.5, 30, -30, 800, -800, 1e6, -1e6], dtype=torch.float64)
    z = torch.cat([3 * randn(200, seed=1), special]).requires_grad_()
    a = torch_function(z)
    (slope,) = torch.autograd.grad(a.sum(), z)
    torch.testing.assert_close(s.value(z.detach()), a.detach(), rtol=1e-13, atol=1e-13)
    if name == "hardswish":  # older versions of torch take the other one-sided derivative at its kinks
        slope = torch.where(z == -3, 0.0, torch.where(z == 3, 1.0, slope))
    torch.testing.assert_close(s.slope(z.detach()), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_limit_of_central_differences(name):
    s, _ = ACTIVATIONS[name]
    z, h = 3 * randn(200, seed=1), 1e-5
    z = z[((z.abs() - 3).abs() > h) & (z.abs() > h) & ((z - 6).abs() > h)]  # no kink in between
    torch.testing.assert_close((s.value(z + h) - s.value(z - h)) / (2 * h), s.slope(z), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_error_signal_is_propagated_as_in_torch(name):
    s, torch_function = ACTIVATIONS[name]
    z = torch.cat([3 * randn(200, seed=1), torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    D = randn(201, seed=2)
    (expected,) = torch.autograd.grad(torch_function(z), z, D)
    torch.testing.assert_close(s.backward(D, z.detach()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_shape_are_kept(name, dtype):
    s, _ = ACTIVATIONS[name]
    z = randn(2, 3, 4, dtype=dtype)
    assert s.value(z).dtype == s.slope(z).dtype == dtype
    assert s.value(z).shape == s.slope(z).shape == z.shape


def test_a_unit_at_zero_is_not_active():
    zero = torch.zeros(1)
    assert activations.RELU.slope(zero) == 0
    assert activations.leaky_relu(0.25).slope(zero) == 0.25


def test_compiled_code_recognises_piecewise_linear_activations():
    """`negative_slope` says that s(z) is z above 0 and that many times z below."""
    z = 10 * randn(100, seed=1)
    for s, torch_function in ACTIVATIONS.values():
        if s.negative_slope is not None:
            torch.testing.assert_close(torch_function(z), torch.where(z > 0, z, s.negative_slope * z))
    assert [name for name, (s, _) in ACTIVATIONS.items() if s.negative_slope is not None] == [
        "identity", "relu", "leaky_relu", "prelu",
    ]  # fmt: skip


def test_names_distinguish_the_variants():
    names = [s.name for s, _ in ACTIVATIONS.values()]
    assert len(set(names)) == len(names)
    assert activations.leaky_relu(0.25).name == "leaky_relu(0.25)"
    assert activations.elu(0.5).name == "elu(0.5)"
    assert activations.gelu("tanh").name != activations.gelu().name
