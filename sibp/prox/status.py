"""A solver's report on its own result: a status, and the metrics that users, TensorBoard and tests read."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from sibp.prox.scalars import Flag, Scalar, choose, is_finite, scalar, share

if TYPE_CHECKING:
    from sibp.prox.solvers.coordinates import Coordinates


WELL_ABOVE = 1e4
"""Times its rounding error: from here on a squared norm has four digits right."""


def smallest_square(dtype: torch.dtype) -> float:
    """From here on, a sum of squares has all its digits: smaller ones lose terms below the smallest normal number."""
    return torch.finfo(dtype).tiny / torch.finfo(dtype).eps


class Status(IntEnum):
    """How the solution of a subproblem ended; larger is worse. `sentence` explains it."""

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
    Status.STALLED: "No iteration found a step that decreases the objective; the weights were kept.",
    Status.GRADIENT: "The Gram matrix could not be factorised; a safe gradient step was taken instead.",
    Status.NONFINITE: "Inputs or results were not finite; the weights were kept.",
}


@dataclass(slots=True)
class Stats:
    """Metrics of one solve; on an accelerator, reading one synchronises.

    Attributes:
        status: integer value of a `Status`.
        decrease: 1 - f(end)/f(start) of the subproblem's objective; 0 where f(start) = 0.
        iterations: taken (0 for a closed form).
        step_length: mean step length over neurons and iterations (1 for a closed form).
        squared_change: ||W_new - W||_F^2 + ||b_new - b||^2.
    """

    status: Scalar
    decrease: Scalar
    iterations: int
    step_length: Scalar
    squared_change: Scalar

    @classmethod
    def of(
        cls,
        status: Scalar,
        finite: Flag,
        start: Scalar,
        end: Scalar,
        *,
        iterations: int,
        step_length: Scalar,
        squared_change: Scalar,
    ) -> Self:
        """The metrics of a solve; if it was not finite, all but the status are 0."""
        finite = finite & is_finite(squared_change)
        known = finite & is_finite(start) & is_finite(end) & (start > 0)  # sums of squares may overflow
        return cls(
            status=choose(finite, lambda: status, lambda: Status.NONFINITE),
            decrease=choose(known, lambda: share(start - end, start), lambda: 0.0),
            iterations=iterations,
            step_length=choose(finite, lambda: step_length, lambda: 0.0),
            squared_change=choose(finite, lambda: squared_change, lambda: 0.0),
        )


Measure = Callable[[], Stats]
"""Evaluates the metrics of a solve lazily, so that training does not wait for unread values. Until the layer's next
solve it retains numbers, and tensors no larger than the layer's weights."""


@dataclass
class Solution:
    """The answer of a solver.

    Attributes:
        coordinates: in which x is the displacement.
        x: (..., r, m) coefficients, up to `factor`; 0 if not `finite`.
        finite: whether all numbers were finite.
        measure: computes `stats` from the displacement's squared norm.
        change_bound: an upper bound of the displacement's squared norm; infinite where none is known.
        squared_change: that norm, evaluated lazily; None if the displacement itself has to be measured.
        factor: factor from the displacement of x to the answer.
    """

    coordinates: "Coordinates"
    x: Tensor
    finite: Flag
    measure: Callable[[Scalar], Stats]
    change_bound: Scalar = math.inf
    squared_change: Callable[[], Scalar] | None = None
    factor: float = 1.0

    @cached_property
    def stats(self) -> Stats:
        """The metrics, computed on first access."""
        known = self.squared_change
        if known is not None:
            return self.measure(known())
        return self.measure(self.factor * self.factor * self.coordinates.squared_change(self.x))

    def scaled(self, factor: float) -> Self:
        """The solution of a linear subproblem whose residual is `factor` (not 0) times as large; no pass over x."""
        measure, square = self.measure, min(factor * factor, sys.float_info.max)  # infinity times 0 is NaN

        def measured(squared_change: Scalar) -> Stats:
            stats = measure(squared_change / square if square else 0.0)  # 0: too small for a float
            return replace(stats, squared_change=stats.squared_change * square)

        most, change = self.change_bound * square, self.squared_change
        squared_change = None if change is None else lambda: change() * square
        factor *= self.factor
        return type(self)(self.coordinates, self.x, self.finite, measured, most, squared_change, factor)


def squared_norm(*parts: Tensor | None) -> Scalar:
    """||.||_F^2 of a displacement's parts, contiguous or transposes of contiguous tensors; None counts as 0."""
    total: Scalar = 0.0
    for part in parts:
        if part is not None:
            # A transpose is flattened in the order of memory, without a copy.
            if part.dim() > 1:
                part = (part if part.is_contiguous() else part.mT).reshape(-1)
            total = total + scalar(torch.dot(part, part))
    return total
