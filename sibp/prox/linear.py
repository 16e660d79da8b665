"""The linear subproblem, in closed form.

    min  ||Phi [W', b']' - T||^2 + lam (||W' - W||^2 + ||b' - b||^2)

With R = Z - T its minimiser solves (G + lam I) X = -pull(R): in span coordinates (K + lam I) U = -R, in direct
coordinates (Phi' Phi + lam I) V = -Phi' R. ProxBP's subproblem (Frerix et al. 2018) is this one with lam = 1/tau.
"""

import torch
from torch import Tensor

from sibp.prox.coordinates import Coordinates
from sibp.prox.status import Solution, Stats, Status, choose

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
    scale = gram.abs().sum(-1).amax()  # ||G||_inf >= its largest eigenvalue
    floor = _DAMPING * torch.finfo(gram.dtype).eps * scale
    damping = floor.clamp(min=lam)
    system = gram.clone()
    system.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, info = torch.linalg.cholesky_ex(system)
    solved = (info == 0).all()
    exact = _cholesky_solve(factor, -rhs)
    solved = solved & exact.sum().isfinite()
    x = choose(solved, lambda: exact, lambda: rhs / -(damping + scale))
    # Where the equations hold they give G x for nothing.
    gram_x = choose(solved, lambda: -rhs - damping * x, lambda: gram @ x)
    start = R.square().sum()
    residual, squared_change = coordinates.quadratic(x, gram_x, R)
    squared_change = squared_change.clamp(min=0)  # as a sum of U * K U it may round below
    end = residual + lam * squared_change
    finite = start.isfinite() & end.isfinite() & scale.isfinite()
    status = torch.where(
        finite,
        torch.where(solved, torch.where(floor > lam, Status.DAMPED, Status.SOLVED), Status.GRADIENT),
        Status.NONFINITE,
    )
    zero = torch.zeros_like(start)
    return Solution(
        x=choose(finite, lambda: x, lambda: torch.zeros_like(x)),
        stats=Stats(
            status=status,
            decrease=torch.where(finite & (start > 0), 1 - end / start, zero),
            rounds=0,
            step_length=torch.ones_like(start),
            squared_change=torch.where(finite, squared_change, zero),
        ),
    )


def _cholesky_solve(factor: Tensor, rhs: Tensor) -> Tensor:
    """(L L')^-1 rhs, by the explicit inverse where there are many columns.

    One product with the inverse is several times faster than triangular solves of many right-hand sides, and in a
    ridge system, whose conditioning lam bounds, as accurate for our purposes.
    """
    if 3 * rhs.shape[-1] < rhs.shape[-2]:
        return torch.cholesky_solve(rhs, factor)
    return torch.cholesky_inverse(factor) @ rhs


def _nothing_to_do(x: Tensor) -> Solution:
    """An empty batch: no displacement, and nothing wrong with that."""
    zero = x.new_zeros(())
    return Solution(torch.zeros_like(x), Stats(zero.long(), zero, 0, zero, zero))
