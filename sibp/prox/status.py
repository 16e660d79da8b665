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
"""A squared norm of at least this many times its rounding error has four correct digits."""


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
    Status.GRADIENT: (
        "The Gram matrix could not be factorised; a gradient step that does not raise the objective was taken instead."
    ),
    Status.NONFINITE: "Inputs or results were not finite; the weights were kept.",
}


@dataclass(slots=True)
class Stats:
    """Metrics of one solve; on an accelerator, reading one synchronises it with the CPU.

    Attributes:
        status: integer value of a `Status`.
        decrease: 1 - f(end)/f(start) of the subproblem's objective, clamped to [0, 1]; 0 where f(start) is 0 or
            a value is not finite.
        iterations: their number; 0 for a closed form.
        step_length: mean step length over neurons and iterations; 1 for a closed form.
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
        """The metrics of a solve.

        Args:
            status: a `Status`; replaced by `Status.NONFINITE` if the solve was not finite.
            finite: whether the solution is finite; if not, decrease, step length and squared change are set to 0.
            start: the objective at the old weights.
            end: the objective at the solution.
            iterations: as in `Stats`.
            step_length: as in `Stats`.
            squared_change: as in `Stats`.
        """
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
"""Computes the metrics of a solve when called, so that training does not wait for values that nobody reads. Until the
layer's next solve it keeps numbers alive, and tensors no larger than the layer's weights."""


@dataclass
class Solution:
    """The result of a solver: a displacement of the layer's parameters, which is `factor` times that of x.

    Attributes:
        coordinates: the coordinates of x.
        x: (..., r, m) coefficients; 0 if not `finite`.
        finite: whether all numbers were finite.
        measure: computes `stats` from the squared norm of the displacement.
        change_bound: an upper bound of the displacement's squared norm; infinite if none is known.
        squared_change: returns that norm; None if it has to be computed from the displacement.
        factor: the factor above.
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
        """The solution of the same linear subproblem for `factor` (not 0) times its residual, without a pass over x."""
        measure, square = self.measure, min(factor * factor, sys.float_info.max)  # infinity times 0 is NaN

        def measured(squared_change: Scalar) -> Stats:
            stats = measure(squared_change / square if square else 0.0)  # the square may underflow
            return replace(stats, squared_change=stats.squared_change * square)

        bound, change = self.change_bound * square, self.squared_change
        squared_change = None if change is None else lambda: change() * square
        factor *= self.factor
        return type(self)(self.coordinates, self.x, self.finite, measured, bound, squared_change, factor)


def squared_norm(*parts: Tensor | None) -> Scalar:
    """The sum of the squared Frobenius norms of a displacement's parts; None counts as 0.

    Args:
        parts: of any shape, contiguous or transposes of contiguous tensors.
    """
    total: Scalar = 0.0
    for part in parts:
        if part is not None:
            # Flattening a transpose in memory order avoids a copy.
            if part.dim() > 1:
                part = (part if part.is_contiguous() else part.mT).reshape(-1)
            total = total + scalar(torch.dot(part, part))
    return total
