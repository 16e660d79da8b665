"""The linear subproblem, in closed form.

    min  ||Phi [W', b']' - T||^2 + lam (||W' - W||^2 + ||b' - b||^2)

With R = Z - T its minimiser solves (G + lam I) X = -pull(R): in span coordinates (K + lam I) U = -R, in direct
coordinates (Phi' Phi + lam I) V = -Phi' R. ProxBP's subproblem (Frerix et al. 2018) is this one with lam = 1/tau.
"""

import torch
from torch import Tensor

from sibp.prox.coordinates import Coordinates, dot
from sibp.prox.numbers import at_least, choose, is_finite, number
from sibp.prox.status import Solution, Stats, Status
from sibp.prox.symmetric import ridge

# A Cholesky factorisation of G + lam I needs lam well above the rounding of G itself: about eps ||G||.
_DAMPING = 2.0


def solve_linear(coordinates: Coordinates, R: Tensor, lam: float) -> Solution:
    """Minimises ||R + image(x)||^2 + lam <x, x>.

    It never raises on numbers: where G + lam I is not positive definite in this precision, lam is raised to the level
    of G's rounding (`Status.DAMPED`); if the factorisation fails still, x is one gradient step of length
    1/(lam + ||G||_inf), which decreases the objective (`Status.GRADIENT`); non-finite input gives x = 0
    (`Status.NONFINITE`).

    Args:
        coordinates: of the layer's features.
        R: (..., N, m) residual Z - T.
        lam: proximal weight, > 0.

    Returns:
        x in the given coordinates, with status and figures.
    """
    gram, rhs = coordinates.gram, coordinates.pull(R)
    if gram.numel() == 0 or rhs.numel() == 0:
        return _nothing_to_do(rhs)
    solve, definite, scale, damping, floor = ridge(gram, lam, _DAMPING * torch.finfo(gram.dtype).eps)
    x = solve(rhs)
    squared_x = number(dot(x, x))
    solved = definite & is_finite(squared_x)
    x = choose(solved, lambda: x, lambda: rhs / -(damping + scale))
    finite = is_finite(scale + choose(solved, lambda: squared_x, lambda: number(dot(x, x))))
    total = coordinates.features.sharing.total
    squared_R = coordinates.when_asked(lambda: number(total(torch.linalg.vector_norm(R).square())))

    def measure() -> Stats:
        start, x_rhs = squared_R(), number(dot(x, rhs))
        residual, squared_change = choose(
            solved,
            lambda: coordinates.solved_quadratic(start, squared_x, x_rhs, damping),
            lambda: coordinates.quadratic(x, gram @ x, rhs, start),
        )
        squared_change = at_least(0.0, squared_change)  # as a difference it may round below
        closed = choose(floor > lam, lambda: Status.DAMPED, lambda: Status.SOLVED)
        status = choose(solved, lambda: closed, lambda: Status.GRADIENT)
        end = residual + lam * squared_change
        return Stats.of(status, finite, start, end, rounds=0, step_length=1.0, squared_change=squared_change)

    return Solution(choose(finite, lambda: x, lambda: torch.zeros_like(x)), finite, measure)


def _nothing_to_do(x: Tensor) -> Solution:
    """An empty batch: no displacement, and nothing wrong with that."""
    return Solution(torch.zeros_like(x), finite=True, measure=lambda: Stats(Status.SOLVED, 0.0, 0, 0.0, 0.0))
