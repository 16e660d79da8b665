r"""The linear subproblem, in closed form.

    min  ||Phi [W_new, b_new]^T - T||^2 + lam (||W_new - W||^2 + ||b_new - b||^2)

With R = Z - T its minimiser solves (G + lam I) X = -Phi^T R: in span coordinates (K + lam I) U = -R, in direct
coordinates (Phi^T Phi + lam I) V = -Phi^T R. ProxBP's subproblem (Frerix et al. 2018) is this one with lam = 1/tau.

How far a computed step can be from the minimiser. A Gram matrix carries a rounding error of about eps ||G||, and a
Cholesky factor L of it with its two substitutions adds one of the same size: the computed U solves (G + E + lam I) U =
-R exactly, with ||E|| of a few eps ||G||. An inverse, multiplied by R, has no such E. The step exceeds the minimal
objective by at most ||E U||^2 <= (||E|| / lam)^2 ||R||^2, the worst case being a residual that no displacement fits. So
there are three ways:

    lam >= 1000 eps ||G||   The bound is of the order of 1e-6: G and its factor in the precision of the layer.
    below that              The same, if a check of the answer shows that it is far better than this bound
                            (`sibp.prox.solvers.checked`); large systems of any lam are checked, too.
    otherwise               Everything in float64, with the objective evaluated at the displacement in the layer's
                            precision, and the displacement shortened where the objective does not decrease.

All of this holds while squares neither overflow nor fall below the smallest normal number. The solution is linear in R,
so a problem that leaves this range is solved for a multiple of R. A lam so small that a Gram matrix comparable to it
would have underflowed is solved for in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sibp.prox import closed
from sibp.prox.scalars import Flag, Scalar, at_least, choose, is_finite, scalar
from sibp.prox.solvers.checked import FLOOR, SINGLE, checked, is_accurate, random_signs, smallest_ratio
from sibp.prox.solvers.coordinates import Coordinates, Direct
from sibp.prox.status import WELL_ABOVE, Solution, Stats, Status, smallest_square, squared_norm

_RESOLVED = 1000.0  # lam / (eps ||G||) from which rounding raises the objective by a few parts in a million
_ATTEMPTS = 4  # at a factorisation, each with eight times the damping of the previous one
_REFINEMENTS = 2  # of a solution in float64


def solve_linear(coordinates: Coordinates, R: Tensor, lam: float) -> Solution:
    """Minimises ||R + forward(x)||^2 + lam <x, x>.

    Never raises on numbers. A lam below the rounding of G is raised to it (`Status.DAMPED`); if no factorisation
    succeeds, x is one gradient step of length 1/(lam + ||G||), shortened for every output unit whose objective it would
    raise (`Status.GRADIENT`); non-finite input gives x = 0 (`Status.NONFINITE`). On an accelerator, where a decision
    would wait for the device, lam is raised to 16 eps ||G|| in the layer's precision instead.

    Args:
        coordinates: of the layer's features.
        R: (..., N, m) residual Z - T.
        lam: proximal weight, > 0.

    Returns:
        x, with the coordinates that it is in (the given ones, or direct ones), status and metrics.
    """
    return _solve(coordinates, R, lam, rescale=True)


def _solve(coordinates: Coordinates, R: Tensor, lam: float, rescale: bool) -> Solution:
    """As `solve_linear`; without `rescale`, R is solved for as it is, whatever its squares."""
    if R.is_cpu and lam < smallest_square(R.dtype) and R.dtype is not torch.float64:
        return _in_double_precision(coordinates, R, lam)
    G, rhs = coordinates.gram, coordinates.adjoint(R)
    eps = torch.finfo(G.dtype).eps
    probes = None if coordinates.direct else random_signs(rhs.shape[-1], rhs.dtype)
    answer = closed.minus_solve(G, rhs, lam, _RESOLVED * eps, probes)
    if answer is not None and answer.norm < answer.largest:  # the squares of G's entries have underflowed
        return _in_double_precision(coordinates, R, lam)
    if answer is not None and answer.x is not None and is_accurate(answer, lam, eps, rhs.shape[-1]):
        energy, most = answer.energy, torch.finfo(G.dtype).max
        in_range = smallest_square(G.dtype) <= min(energy, answer.XX) and energy * max(1.0, lam + answer.norm) <= most
        if not rescale or in_range or (factor := _balancing(rhs, lam, answer.norm)) == 1:
            return _from_answer(coordinates, R, answer.x, lam, answer)
        return _at_scale(coordinates, R, lam, factor)
    norm = scalar(torch.linalg.vector_norm(G)) if answer is None else answer.norm
    if isinstance(norm, Tensor):
        return _factorized(coordinates, R, rhs, lam, at_least(lam, FLOOR * eps * norm), norm)
    norm = _norm(G) if answer is None else norm
    if rescale and (factor := _balancing(rhs, lam, norm)) != 1:
        return _at_scale(coordinates, R, lam, factor)
    if answer is None and coordinates.size < SINGLE and lam >= _RESOLVED * eps * norm:
        return _factorized(coordinates, R, rhs, lam, lam, norm)
    return checked(coordinates, R, rhs, lam, norm) or _in_double_precision(coordinates, R, lam)


def _balancing(rhs: Tensor, lam: float, norm: float) -> float:
    """A power of two by which to multiply R if squares of rhs or of the solution leave the range of their dtype; or 1.

    It makes rhs as large as the solution is small, and is the same on all ranks that sum over their rows.
    """
    top, size = float(rhs.abs().amax()) if rhs.numel() else 0.0, lam + norm
    if not (0 < top < math.inf and size < math.inf):
        return 1.0
    least, most = smallest_square(rhs.dtype), torch.finfo(rhs.dtype).max * torch.finfo(rhs.dtype).eps
    if least <= top * top <= most and least <= top / size * (top / size) and top / lam * top <= most:
        return 1.0
    return math.ldexp(1.0, max(-1000, min(1000, round(math.log2(size) / 2 - math.log2(top)))))


def _at_scale(coordinates: Coordinates, R: Tensor, lam: float, factor: float) -> Solution:
    """The solution for `factor` R, divided by the factor, as a displacement in direct coordinates."""
    solution = _solve(coordinates, factor * R, lam, rescale=False)
    V, stats = solution.coordinates.entries(solution.x) / factor, solution.stats
    if not (solution.finite and math.isfinite(float(squared_norm(V)))):
        return _zero_solution(coordinates, R)

    def measure(squared_change: Scalar) -> Stats:
        start, end, length = 1.0, 1.0 - float(stats.decrease), stats.step_length
        return Stats.of(stats.status, True, start, end, iterations=0, step_length=length, squared_change=squared_change)

    return Solution(Direct(coordinates.features), V, True, measure)


@dataclass(frozen=True)
class _Factor:
    """The Cholesky factor of G + damping I, in float64.

    Attributes:
        L: (..., r, r) lower triangle.
        definite: whether the factorisation succeeded; if not, L is undefined.
    """

    L: Tensor
    definite: Flag

    @classmethod
    def of(cls, G: Tensor, damping: Scalar) -> "_Factor":
        """Factors G (..., r, r), of any floating dtype, plus damping > 0."""
        system = G.to(torch.float64, copy=True)
        system.diagonal(dim1=-2, dim2=-1).add_(damping)
        L, info = torch.linalg.cholesky_ex(system)
        return cls(L, scalar(info if info.dim() == 0 else info.amax()) == 0)

    def minus_solve(self, rhs: Tensor) -> Tensor:
        """-(G + damping I)^-1 rhs, (..., r, m), in the dtype of rhs."""
        if rhs.dtype != torch.float64 and 3 * rhs.shape[-1] >= rhs.shape[-2]:
            # With many right-hand sides one product with the inverse is several times faster than two triangular
            # solves. The inverse, exact to float64, rounds like any other factor of a product.
            return torch.cholesky_inverse(self.L).neg_().to(rhs.dtype) @ rhs
        return torch.cholesky_solve(rhs.double(), self.L).neg_().to(rhs.dtype)


def _factorized(
    coordinates: Coordinates, R: Tensor, rhs: Tensor, lam: float, damping: Scalar, norm: Scalar
) -> Solution:
    """The solution from a Gram matrix in the precision of the layer, by a factor in float64; norm: of the matrix."""
    G, features = coordinates.gram, coordinates.features
    factor = features.once((_Factor, damping), lambda: _Factor.of(G, damping))
    x, definite = factor.minus_solve(rhs), factor.definite
    x = choose(definite, lambda: x, lambda: rhs / -(lam + norm))
    finite = is_finite(squared_norm(x))
    squared_R = coordinates.squared_residual(R)
    norms = coordinates.norms_of(x, rhs, squared_R)

    def status() -> Scalar:
        closed = choose(damping > lam, lambda: Status.DAMPED, lambda: Status.SOLVED)
        return choose(definite, lambda: closed, lambda: Status.GRADIENT)

    def measure(squared_change: Scalar) -> Stats:
        start, end = squared_R(), norms()[0] + lam * squared_change
        return Stats.of(status(), finite, start, end, iterations=0, step_length=1.0, squared_change=squared_change)

    return Solution(coordinates, choose(finite, lambda: x, lambda: torch.zeros_like(x)), finite, measure)


def _from_answer(coordinates: Coordinates, R: Tensor, x: Tensor, lam: float, answer: closed.Answer) -> Solution:
    """The solution x of an answer, with metrics that follow from the answer's sums."""
    start, energy, finite = coordinates.squared_residual(R), answer.energy, math.isfinite(answer.energy)
    minimum = coordinates.minimum  # a function, so that `measure` keeps no coordinates

    def measure(squared_change: Scalar) -> Stats:
        end = minimum(start(), -energy, lam)
        return Stats.of(
            Status.SOLVED, finite, start(), end, iterations=0, step_length=1.0, squared_change=squared_change
        )

    solution = Solution(coordinates, x if finite else torch.zeros_like(x), finite, measure)
    underflow = x.numel() * torch.finfo(x.dtype).tiny  # at most, of squares that are too small to be added
    most = coordinates.squared_norm_bound(answer.largest, answer.XX + underflow)
    XX = coordinates.squared_norm_by(energy, answer.XX, lam)
    rounding = torch.finfo(x.dtype).eps * energy  # of the difference that <x, x> is in the span
    if coordinates.resolves(XX - WELL_ABOVE * rounding, most):
        solution.change_bound, solution.squared_change = most, lambda: XX
    return solution


def _in_double_precision(coordinates: Coordinates, R: Tensor, lam: float) -> Solution:
    """The solution with every product in float64, as a displacement in direct coordinates; on the CPU only."""
    side, dtype, R = coordinates.to(torch.float64), R.dtype, R.double()
    over_rows = side.features.over_rows
    norm, start = _norm(side.gram), over_rows(R.square()).sum().item()
    if not math.isfinite(norm + start):
        return _zero_solution(coordinates, R.to(dtype))
    damping, solve = _factor_with_damping(side, lam, norm, torch.finfo(dtype).eps)
    status = Status.GRADIENT if solve is None else Status.DAMPED if damping > lam else Status.SOLVED
    if solve is None:
        V = side.features.rmatmat(R) / -(damping + norm)
    else:
        X = solve(side.adjoint(R))
        V = side.entries(X)
        for _ in range(_REFINEMENTS if damping == lam else 0):
            # Phi V is formed without G, and V corrected in place: the rounding of G, and that of Phi^T U for a long U,
            # may be a fair share of lam.
            correction = solve(side.adjoint(R + side.features.matmat(V)) + lam * X)
            X, V = X + correction, V + side.entries(correction)
    V = V.to(dtype)
    # The objective along V, for every output unit: f(tV) = f(0) + 2 t slope + t^2 curvature.
    change_of_Z = side.features.matmat(V.double())
    slope = over_rows(R * change_of_Z)
    curvature = over_rows(change_of_Z.square()) + lam * V.double().square().sum(-2)
    rises = 2 * slope + curvature > 0
    t = torch.where(rises, (-slope / curvature).clamp(0, 1), 1.0)
    V = V * t.unsqueeze(-2).to(dtype)
    change = (2 * t * slope + t * t * curvature).sum().item()
    if not math.isfinite(change + float(squared_norm(V))):
        return _zero_solution(coordinates, R.to(dtype))

    def measure(squared_change: Scalar) -> Stats:
        end = start + change
        return Stats.of(status, True, start, end, iterations=0, step_length=1.0, squared_change=squared_change)

    return Solution(Direct(coordinates.features), V, True, measure)


def _norm(G: Tensor) -> float:
    """The Frobenius norm, also where squares of entries leave the range of the dtype."""
    norm = float(torch.linalg.vector_norm(G))
    if G.numel() == 0 or smallest_square(G.dtype) <= norm * norm < math.inf:
        return norm
    top = float(G.abs().amax())
    return top * float(torch.linalg.vector_norm(G / top)) if 0 < top < math.inf else norm


Solve = Callable[[Tensor], Tensor]


def _factor_with_damping(side: Coordinates, lam: float, norm: float, eps: float) -> tuple[float, Solve | None]:
    """The least damping >= lam with which G + damping I can be factored, and its solver; None if there is none.

    Args:
        side: coordinates in float64.
        lam: proximal weight.
        norm: Frobenius norm of G.
        eps: of the displacement's dtype, whose rounding eps V must not raise the objective: ||V|| <= ||R|| / sqrt(lam).
    """
    least = smallest_ratio(eps)
    if lam < least * norm:
        norm = float(torch.linalg.matrix_norm(side.gram, 2).max())
    damping = max(lam, least * norm)
    for _ in range(_ATTEMPTS):
        factor = _Factor.of(side.gram, damping)
        if factor.definite:
            return damping, factor.minus_solve
        damping *= 8
    return damping, None


def _zero_solution(coordinates: Coordinates, R: Tensor) -> Solution:
    """No displacement: some input or result is not finite."""
    direct, stats = Direct(coordinates.features), Stats(Status.NONFINITE, 0.0, 0, 0.0, 0.0)
    return Solution(direct, torch.zeros_like(direct.adjoint(R)), False, lambda _: stats)
