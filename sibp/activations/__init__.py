"""The activations that a layer's subproblem can contain.

Identity, ReLU, ReLU6, LeakyReLU, PReLU, ELU, GELU in both forms, SiLU, Mish, Hardswish, Softplus, sigmoid, tanh and
Hardtanh are built in; `register_activation` adds others.
"""

from sibp.activations.activation import Activation, Learned
from sibp.activations.functions import (
    HARDSWISH,
    IDENTITY,
    MISH,
    RELU,
    RELU6,
    SIGMOID,
    SILU,
    TANH,
    elu,
    gelu,
    hardtanh,
    leaky_relu,
    prelu,
    softplus,
)
from sibp.activations.registry import register_activation

__all__ = [
    "HARDSWISH",
    "IDENTITY",
    "MISH",
    "RELU",
    "RELU6",
    "SIGMOID",
    "SILU",
    "TANH",
    "Activation",
    "Learned",
    "elu",
    "gelu",
    "hardtanh",
    "leaky_relu",
    "prelu",
    "register_activation",
    "softplus",
]
