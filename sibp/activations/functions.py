"""The built-in activations; `sibp.activations.registry` lists the calls that compute them."""

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sibp.activations.activation import Activation, Learned

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
_GELU_TANH_SCALE = math.sqrt(2 / math.pi)  # constants of the tanh form, Hendrycks & Gimpel 2016 (1606.08415)
_GELU_TANH_CUBIC = 0.044715


def _leaky_slope(z: Tensor, negative_slope: float) -> Tensor:
    # full_like: `where` between two numbers would round the slope to the default dtype.
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, negative_slope))


def _gelu_slope(z: Tensor) -> Tensor:
    """d/dz [z Phi(z)] = Phi(z) + z phi(z), Phi and phi of the standard normal distribution."""
    return 0.5 * (1 + torch.erf(z * _SQRT_HALF)) + z * torch.exp(-0.5 * z * z) * _INV_SQRT_2PI


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    h = torch.tanh(_GELU_TANH_SCALE * (z + _GELU_TANH_CUBIC * z**3))
    inner_slope = _GELU_TANH_SCALE * (1 + 3 * _GELU_TANH_CUBIC * z * z)
    return 0.5 * (1 + h) + 0.5 * z * (1 - h * h) * inner_slope


def _tanh_slope(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z).square()


def _sigmoid_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _elu_slope(z: Tensor, alpha: float) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), alpha * torch.exp(z.clamp(max=0)))


def _softplus_slope(z: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * z > threshold, torch.ones_like(z), torch.sigmoid(beta * z))


def _mish_slope(z: Tensor) -> Tensor:
    """d/dz [z t], t = tanh(log(1 + e^z))."""
    t = torch.tanh(F.softplus(z))
    return t + z * torch.sigmoid(z) * (1 - t * t)


def _hardswish_slope(z: Tensor) -> Tensor:
    """The derivative of z (z + 3) / 6 for -3 < z < 3; 0 for smaller z, and 1 for larger z."""
    return torch.where(z <= -3, torch.zeros_like(z), torch.where(z < 3, z / 3 + 0.5, torch.ones_like(z)))


def _hardtanh_slope(z: Tensor, low: float, high: float) -> Tensor:
    return ((z > low) & (z < high)).to(z.dtype)


IDENTITY = Activation("identity", lambda z: z, torch.ones_like, negative_slope=1.0)
RELU = Activation(
    "relu",
    torch.relu,
    slope=lambda z: z.sign().clamp_(min=0),  # a conversion from bool takes five times as long
    fused_backward=lambda D, z: torch.ops.aten.threshold_backward(D, z, 0),
    negative_slope=0.0,
)
TANH = Activation(
    "tanh",
    torch.tanh,
    _tanh_slope,
    fused_backward=lambda D, z: torch.ops.aten.tanh_backward(D, torch.tanh(z)),
    kernel="tanh",
)
SIGMOID = Activation(
    "sigmoid",
    torch.sigmoid,
    _sigmoid_slope,
    fused_backward=lambda D, z: torch.ops.aten.sigmoid_backward(D, torch.sigmoid(z)),
    kernel="sigmoid",
)
SILU = Activation("silu", F.silu, _silu_slope, fused_backward=torch.ops.aten.silu_backward, kernel="silu")
MISH = Activation("mish", F.mish, _mish_slope)
HARDSWISH = Activation("hardswish", F.hardswish, _hardswish_slope)


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """LeakyReLU: z above 0, negative_slope * z below."""
    return Activation(
        f"leaky_relu({negative_slope:g})",
        partial(F.leaky_relu, negative_slope=negative_slope),
        partial(_leaky_slope, negative_slope=negative_slope),
        negative_slope,
    )


def gelu(approximate: str = "none") -> Activation:
    """GELU (Hendrycks & Gimpel 2016): exact for `approximate="none"`, in its tanh form for `approximate="tanh"`."""
    tanh_form = approximate == "tanh"
    return Activation(
        "gelu(tanh)" if tanh_form else "gelu",
        partial(F.gelu, approximate=approximate),
        _gelu_tanh_slope if tanh_form else _gelu_slope,
        fused_backward=partial(torch.ops.aten.gelu_backward, approximate=approximate),
        kernel="gelu_tanh" if tanh_form else "gelu",
    )


def elu(alpha: float = 1.0) -> Activation:
    """ELU (Clevert, Unterthiner & Hochreiter, ICLR 2016): z above 0, alpha (e^z - 1) below."""
    return Activation(f"elu({alpha:g})", partial(F.elu, alpha=alpha), partial(_elu_slope, alpha=alpha))


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """Softplus: log(1 + e^(beta z)) / beta, and z where beta z is above the threshold."""
    settings = {"beta": beta, "threshold": threshold}
    return Activation(f"softplus({beta:g})", partial(F.softplus, **settings), partial(_softplus_slope, **settings))


def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    """Hardtanh: z, clamped to [min_val, max_val]."""
    return Activation(
        f"hardtanh({min_val:g}, {max_val:g})",
        partial(F.hardtanh, min_val=min_val, max_val=max_val),
        partial(_hardtanh_slope, low=min_val, high=max_val),
    )


RELU6 = replace(hardtanh(0.0, 6.0), name="relu6")


def prelu(weight: Tensor) -> Activation:
    """PReLU (He et al., ICCV 2015): z above 0, weight * z below.

    Args:
        weight: the slopes; a single number, or a tensor that broadcasts to z's shape.
    """
    one_number = weight.numel() == 1 and weight.device.type == "cpu"  # on an accelerator, reading it would synchronise
    a = weight.reshape(()) if weight.numel() == 1 else weight
    return Activation(
        "prelu",
        value=lambda z: torch.where(z > 0, z, a.to(z.dtype) * z),
        slope=lambda z: torch.where(z > 0, torch.ones_like(z), a.to(z.dtype)),
        negative_slope=weight.item() if one_number else None,
        learned=Learned((weight,), prelu),
    )


def prelu_by_channel(z: Tensor, weight: Tensor) -> Activation:
    """`prelu` with the arguments of `torch.nn.functional.prelu`.

    Args:
        z: (B, channels, ...), or (n,).
        weight: the slopes: one number, or one for each channel.
    """
    by_channel = weight.numel() > 1 and z.dim() > 1
    return prelu(weight.view(-1, *(1,) * (z.dim() - 2)) if by_channel else weight)
