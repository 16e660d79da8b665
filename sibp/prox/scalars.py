"""Scalars that control a solver, without synchronising an accelerator with the CPU."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Scalar = Tensor | float
"""A 0-dimensional tensor on an accelerator, where reading it would synchronise; a float on the CPU, where tensor
arithmetic on single numbers takes a hundred times as long."""
Flag = Tensor | bool
"""A condition: a 0-dimensional tensor or a bool, as for a `Scalar`."""

Chosen = TypeVar("Chosen")


def scalar(tensor: Tensor | float) -> Scalar:
    """A 0-dimensional tensor as a `Scalar`."""
    return tensor.item() if isinstance(tensor, Tensor) and tensor.is_cpu else tensor


def is_finite(value: Scalar) -> Flag:
    """Whether a value is neither infinite nor NaN."""
    return abs(value) < math.inf


def at_least(bound: float, value: Scalar) -> Scalar:
    """The larger of the two; NaN stays NaN."""
    if isinstance(value, Tensor):
        return value.clamp(min=bound)
    return bound if value < bound else value


def share(part: Scalar, whole: Scalar) -> Scalar:
    """The ratio part / whole, clamped to [0, 1]; undefined where whole is not positive."""
    if not isinstance(part, Tensor) and not isinstance(whole, Tensor):
        return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
    return torch.as_tensor(part / whole).clamp(0, 1)


def choose(flag: Flag, yes: Callable[[], Chosen], no: Callable[[], Chosen]) -> Chosen:
    """`yes()` where `flag` holds, else `no()`; on an accelerator both are computed.

    Args:
        flag: the condition.
        yes: returns a tensor or a `Scalar`.
        no: returns the same kind.
    """
    if not isinstance(flag, Tensor):
        return yes() if flag else no()
    chosen: Any = torch.where(flag, yes(), no())  # pyright: ignore[reportCallIssue, reportArgumentType]
    return chosen  # torch.where takes numbers and tensors
