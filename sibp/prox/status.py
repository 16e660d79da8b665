"""What a solver says about its own work: a status, and the figures that users, TensorBoard and tests read."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TypeVar

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


Measure = Callable[[], Stats]
"""Works out the figures of a solve when somebody asks for them: training does not wait for what nobody reads. It holds
on to 0-dimensional tensors only."""


@dataclass(frozen=True)
class Solution:
    """The answer of a solver.

    Attributes:
        x: (..., r, m) coefficients of the displacement in the coordinates that were used; 0 if not `finite`.
        finite: 0-dimensional, whether all numbers were finite.
        measure: gives `stats`.
    """

    x: Tensor
    finite: Tensor
    measure: Measure

    @cached_property
    def stats(self) -> Stats:
        """What happened."""
        return self.measure()


Chosen = TypeVar("Chosen", Tensor, tuple[Tensor, Tensor])


def choose(flag: Tensor, yes: Callable[[], Chosen], no: Callable[[], Chosen]) -> Chosen:
    """`yes()` where the 0-dimensional `flag` holds, else `no()`, without ever synchronising a device.

    On the CPU reading a flag costs nothing, so only the chosen side is computed.
    """
    if flag.device.type == "cpu":
        return yes() if flag else no()
    here, there = yes(), no()
    if isinstance(here, tuple):
        return torch.where(flag, here[0], there[0]), torch.where(flag, here[1], there[1])
    return torch.where(flag, here, there)
