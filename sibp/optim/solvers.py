"""Solvers by name: each maps a layer's subproblem to its update and metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.prox.operators.base import Parts
from sibp.prox.outputs import Shifted
from sibp.prox.scalars import Flag, Scalar, choose, is_finite
from sibp.prox.solvers.coordinates import Coordinates, smaller_side
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.solvers.paper import ITERATIONS, RHO, PaperSolution, solve_layer
from sibp.prox.status import Measure, Solution, Stats, Status, squared_norm


@dataclass(frozen=True)
class Solver:
    """A parsed solver name.

    Attributes:
        kind: "cg", "exact", "paper" or "gradient".
        iterations: K of "cg:K"; 0 for the others.
    """

    kind: str
    iterations: int = 0


MAX_ITERATIONS = 1000
"""The largest K of "cg:K": far beyond convergence in any precision."""


def parse_solver(name: str, allowed: tuple[str, ...]) -> Solver:
    """Reads a solver's name, such as "cg:5" or "exact".

    Args:
        name: as the user passed it.
        allowed: the kinds that the method supports.

    Raises:
        ValueError: if there is no such solver.
    """
    try:
        return _parsed(name, allowed)
    except TypeError:  # not hashable, so not a string
        raise _no_such_solver(name, allowed) from None


@lru_cache
def _parsed(name: str, allowed: tuple[str, ...]) -> Solver:
    if isinstance(name, str):
        kind, _, number = name.partition(":")
        iterations = int(number) if number.isdecimal() and len(number) <= len(str(MAX_ITERATIONS)) else 0
        if kind == "cg" and "cg" in allowed and 1 <= iterations <= MAX_ITERATIONS:
            return Solver("cg", iterations)
        if kind in allowed and kind != "cg" and kind == name:
            return Solver(kind)
    raise _no_such_solver(name, allowed)


def _no_such_solver(name: object, allowed: tuple[str, ...]) -> ValueError:
    cg = f"'cg:K' (K iterations, 1 <= K <= {MAX_ITERATIONS})"
    known = ", ".join(cg if kind == "cg" else f"'{kind}'" for kind in allowed)
    return ValueError(f"Invalid solver: {name!r}; choose one of {known}.")


def linear_update(problem: LayerProblem, eta: float, prox_weight: float) -> tuple[LayerUpdate, Measure]:
    """The linear subproblem in closed form: target T = Z - eta D_z, so R = Z - T = eta D_z.

    Args:
        problem: the layer's subproblem.
        eta: step on the neurons, for error signals as they are in the problem.
        prox_weight: lam.
    """
    coordinates, D_z = smaller_side(problem.features), problem.D_z
    if not eta:
        return as_update(solve_linear(coordinates, torch.zeros_like(D_z), prox_weight))
    return as_update(solve_linear(coordinates, D_z, prox_weight).scaled(eta))


def as_update(solution: Solution) -> tuple[LayerUpdate, Measure]:
    """A solution as a layer's update; its displacement is exactly zero if the solve was not finite."""
    features = solution.coordinates.features
    coordinates, x, finite = features.all_units(solution.coordinates, solution.x, solution.finite)
    factor = solution.factor
    W_decrease, b_decrease = parts = coordinates.displacement(x, -factor)
    squared_change, bound = _change(solution, coordinates, x, parts)
    finite = finite & is_finite(bound)
    backward_change = None
    if coordinates.low_rank_is_cheaper(x.shape[-1]):
        backward_change = partial(coordinates.backward_change, x=x, factor=factor)
    update = LayerUpdate(
        zero_unless_finite(finite, W_decrease),
        zero_unless_finite(finite, b_decrease),
        backward_change,
        change_bound=choose(finite, lambda: bound, lambda: math.inf),
    )
    measure = solution.measure
    return update, lambda: measure(squared_change())


def _change(
    solution: Solution, coordinates: Coordinates, x: Tensor, parts: Parts
) -> tuple[Callable[[], Scalar], Scalar]:
    """||W_new - W||^2 + ||b_new - b||^2, evaluated lazily if possible, and an upper bound of it.

    Reading the displacement of a wide layer takes a twentieth of a training step. This is deferred if a cheap bound
    shows that all entries are finite and their mean square is at most 1. Otherwise the bound is the exact value.

    Args:
        solution: the solver's result.
        coordinates: the coordinates of x.
        x: (..., r, m) coefficients of all output units.
        parts: W - W_new and b - b_new; the user may change these tensors later, by clipping.
    """
    features, most, known = coordinates.features, solution.change_bound, solution.squared_change
    if x is solution.x and known is not None and most <= features.groups * features.size * x.shape[-1]:
        return known, most
    now = squared_norm(*parts)
    return lambda: now, now


def zero_unless_finite(finite: Flag, change: Tensor | None) -> Tensor | None:
    """The change, of any shape; exactly zero if the solve was not finite. None stays None."""
    if change is None or finite is True:
        return change
    return choose(finite, lambda: change, lambda: torch.zeros_like(change))


def cg_update(problem: LayerProblem, eta: float, prox_weight: float, iterations: int) -> tuple[LayerUpdate, Measure]:
    """The subproblem with its activation, by CG; the linear one in closed form if s is unknown.

    The target is T_l = s(Z_l) - eta D_l.

    Args:
        problem: the layer's subproblem.
        eta: step on the neurons, for error signals as they are in the problem.
        prox_weight: lam.
        iterations: K, the number of iterations of conjugate gradients.
    """
    s, Z, D = problem.activation, problem.Z, problem.D
    if s is None or Z is None or D is None:
        return linear_update(problem, eta, prox_weight)
    coordinates = smaller_side(problem.features)
    return as_update(solve_nonlinear(coordinates, Z, Shifted(D, eta), prox_weight, s, iterations))


def paper_update(problem: LayerProblem, eta: float, prox_weight: float) -> tuple[LayerUpdate, Measure]:
    """The authors' solver: first W, then b; see `sibp.prox.solvers.paper`.

    Args:
        problem: the subproblem of a linear layer followed by ReLU (hidden) or by the loss (output).
        eta: step on the neurons, for error signals as they are in the problem.
        prox_weight: lam, for both W and b.

    Raises:
        RuntimeError: for an activation other than ReLU and the identity.
        ValueError: for a convolution.
    """
    check_paper(problem.name, problem.W)
    s, features = problem.activation, problem.features
    if s is not None and s.name != "relu":
        raise RuntimeError(
            f"layer '{problem.name}': solver='paper' supports ReLU and the identity only, not {s.name}; use 'cg:5'."
        )
    A, W, b = features.moving(weight=True, bias=False).materialize(), problem.W, problem.b
    if s is None or problem.Z is None or problem.D is None:
        Z = features.forward(W, b)
        T = Z - eta * problem.D_z
    else:
        Z = problem.Z
        T = s.value(Z) - eta * problem.D
    solution = solve_layer(
        A, Z, T, W, b, prox_weight, prox_weight,
        relu=s is not None, train_W=features.weight, train_b=features.bias,
    )  # fmt: skip
    W_decrease = W - solution.W if features.weight else None
    b_decrease = b - solution.b if features.bias and solution.b is not None and b is not None else None
    stats = _paper_stats(solution)  # not lazily: a solution holds tensors of the layer's size
    return LayerUpdate(W_decrease, b_decrease), lambda: stats


def check_paper(name: str, weight: Tensor) -> None:
    """Refuses layers that the authors' solver does not support.

    Args:
        name: the layer's name.
        weight: (m, n) of a linear layer, or (m, ...) of a convolution.

    Raises:
        ValueError: if it is a convolution.
    """
    if weight.dim() != 2:
        raise ValueError(
            f"layer '{name}' is a convolution, and solver='paper' is for linear layers only; use solver='cg:5', or "
            f"leave it to the fallback optimizer with explicit=['{name}']."
        )


def _paper_stats(solution: PaperSolution) -> Stats:
    """The metrics of both calls together; the b call starts where the W call ended."""
    calls = [call for call in (solution.trace_W, solution.trace_b) if call is not None]
    start = calls[0].iterations[0].f if calls else 0.0
    # The b call's objective lacks the W call's proximal term, so each call's decrease is counted on its own objective.
    gained = sum(call.iterations[0].f - call.f_end for call in calls)
    steps = [RHO**r.m if r.m > 0 else 0.0 for call in calls for r in call.iterations]
    if not math.isfinite(start + gained):
        status = Status.NONFINITE
    else:
        status = Status.SOLVED if any(steps) or start == 0 else Status.STALLED
    return Stats(
        status=status,
        decrease=gained / start if start > 0 and math.isfinite(start) else 0.0,
        iterations=ITERATIONS,
        step_length=sum(steps) / len(steps) if steps else 0.0,
        squared_change=sum(call.squared_change for call in calls),
    )
