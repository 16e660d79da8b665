"""What a solver says about its own work: a status, and the figures that users, TensorBoard and tests read."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """How a proximal subproblem ended; the larger, the worse. `sentence` says it in words."""

    SOLVED = 0
    DAMPED = 1
    STALLED = 2
    GRADIENT = 3
    NONFINITE = 4

    @property
    def sentence(self) -> str:
        """The status as a full sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.SOLVED: "The subproblem was solved as asked.",
    Status.DAMPED: "lam is below what this precision can resolve beside the Gram matrix; a larger lam was used.",
    Status.STALLED: "No round found a step that decreases the objective; the weights were kept.",
    Status.GRADIENT: "The Gram matrix could not be factorised; a safe gradient step was taken instead.",
    Status.NONFINITE: "Inputs or results were not finite; the weights were kept.",
}


@dataclass(frozen=True)
class Stats:
    """Figures of one solve, as 0-dimensional tensors on the solve's device (reading one synchronises).

    Attributes:
        status: integer value of a `Status`.
        decrease: 1 - f(end)/f(start) of the subproblem's objective; 0 where f(start) = 0.
        rounds: iterations taken (0 for a closed form).
        step_length: mean step length over neurons and rounds (1 for a closed form).
        squared_change: ||W' - W||_F^2 + ||b' - b||^2.
    """

    status: Tensor
    decrease: Tensor
    rounds: int
    step_length: Tensor
    squared_change: Tensor


@dataclass(frozen=True)
class Solution:
    """The answer of a solver.

    Attributes:
        x: (..., r, m) coefficients of the displacement in the coordinates that were used.
        stats: what happened.
    """

    x: Tensor
    stats: Stats


def choose(flag: Tensor, yes: Callable[[], Tensor], no: Callable[[], Tensor]) -> Tensor:
    """`yes()` where the 0-dimensional `flag` holds, else `no()`, without ever synchronising a device.

    On the CPU reading a flag costs nothing, so only the chosen side is computed.
    """
    if flag.device.type == "cpu":
        return yes() if flag else no()
    return torch.where(flag, yes(), no())
