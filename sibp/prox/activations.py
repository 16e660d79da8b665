"""Activations s that a subproblem can contain, each with its slope s'."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
_GELU_TANH_SCALE = math.sqrt(2 / math.pi)  # constants of the tanh form, Hendrycks & Gimpel 2016 (1606.08415)
_GELU_TANH_CUBIC = 0.044715


@dataclass(frozen=True)
class Activation:
    """An elementwise function s.

    Attributes:
        name: as users know it.
        value: s, any shape.
        slope: s', same shape; at a kink the left value, so that ReLU is [z > 0] strictly, as in the paper's code.
        through: maps (D, z) to D * s'(z); only given where that can be had in one pass.
        negative_slope: a, if s(z) is z for z > 0 and a z otherwise; None for any other function.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    negative_slope: float | None = None
    through: Callable[[Tensor, Tensor], Tensor] | None = None

    def backward(self, D: Tensor, z: Tensor) -> Tensor:
        """D * s'(z): a difference on s(z), taken back to z; all of one shape."""
        return self.through(D, z) if self.through is not None else D * self.slope(z)


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


IDENTITY = Activation("identity", lambda z: z, torch.ones_like, negative_slope=1.0)
RELU = Activation(
    "relu",
    torch.relu,
    slope=lambda z: z.sign().clamp_(min=0),  # a conversion from bool takes five times as long
    through=lambda D, z: torch.ops.aten.threshold_backward(D, z, 0),
    negative_slope=0.0,
)
TANH = Activation("tanh", torch.tanh, _tanh_slope)
SIGMOID = Activation("sigmoid", torch.sigmoid, _sigmoid_slope)
SILU = Activation("silu", F.silu, _silu_slope)


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """LeakyReLU with the given slope on the negative side."""
    return Activation(
        f"leaky_relu({negative_slope:g})",
        partial(F.leaky_relu, negative_slope=negative_slope),
        partial(_leaky_slope, negative_slope=negative_slope),
        negative_slope,
    )


def gelu(approximate: str = "none") -> Activation:
    """GELU, exact (`"none"`) or in its tanh form (`"tanh"`), as `torch.nn.GELU` names them."""
    if approximate == "tanh":
        return Activation("gelu(tanh)", partial(F.gelu, approximate="tanh"), _gelu_tanh_slope)
    return Activation("gelu", F.gelu, _gelu_slope)
