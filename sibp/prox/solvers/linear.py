r"""The linear subproblem, in closed form.

    min  ||Phi [W_new, b_new]^T - T||^2 + lam (||W_new - W||^2 + ||b_new - b||^2)

With R = Z - T, the minimiser solves (G + lam I) X = -adjoint(R). In span coordinates this is (K + lam I) U = -R, in
direct coordinates (Phi^T Phi + lam I) V = -Phi^T R. ProxBP's subproblem (Frerix et al. 2018) is this one with
lam = 1/tau.

Accuracy. The rounding error of a Gram matrix is about eps ||G||. A Cholesky factorisation and its two substitutions add
an error of the same size: the computed U solves (G + E + lam I) U = -R exactly, with ||E|| a few times eps ||G||. (The
product of a computed inverse with R solves no such system.) The objective exceeds its minimum by at most ||E U||^2 <=
(||E|| / lam)^2 ||R||^2; the worst case is a residual that no displacement reduces. There are three cases:

    lam >= 1000 eps ||G||   The excess is at most about 1e-6 ||R||^2, so G is formed in the layer's precision, and
                            factored in it by compiled code. A system that compiled code does not support is factored in
                            float64, or checked as in the next case if it is large.
    a smaller lam           The same, if a check shows that the answer is accurate enough (`sibp.prox.solvers.checked`).
    otherwise               Everything is computed in float64. The objective is evaluated at the displacement in the
                            layer's precision, and the displacement is shortened where it would raise the objective.

All of this holds while squares neither overflow nor fall below the smallest normal number. The solution is linear in R,
so a problem that leaves this range is solved for a multiple of R. If lam is so small that a Gram matrix comparable to
it would have underflowed, the solution is computed in float64.
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

_RESOLVED = 1000.0  # least lam / (eps ||G||) at which rounding raises the objective by a few millionths of ||R||^2
_ATTEMPTS = 4  # factorisations, each with eight times the damping of the previous one
_REFINEMENTS = 12  # of a solution in float64
_NEGLIGIBLE = 1e-8  # refinement ends once it changes the objective by less than this share of its decrease


def solve_linear(coordinates: Coordinates, R: Tensor, lam: float) -> Solution:
    """Minimises ||R + forward(x)||^2 + lam <x, x>.

    Nothing raises an error for numerical reasons:

    - A lam below the rounding of G is raised to it (`Status.DAMPED`).
    - If no factorisation succeeds, x is a gradient step of length 1/(lam + ||G||), shortened for every output unit
      whose objective it would raise (`Status.GRADIENT`).
    - Non-finite input gives x = 0 (`Status.NONFINITE`).

    On an accelerator, no value is read to choose among the three cases. G is in the layer's precision, its factor in
    float64, and lam is raised to 16 eps ||G|| if it is smaller.

    Args:
        coordinates: of the layer's features.
        R: (..., N, m) residual Z - T.
        lam: proximal weight, > 0.

    Returns:
        x, its coordinates (the given ones, or direct ones), status and metrics.
    """
    return _solve(coordinates, R, lam, rescale=True)


def _solve(coordinates: Coordinates, R: Tensor, lam: float, rescale: bool) -> Solution:
    """As `solve_linear`; without `rescale`, R is not scaled, even if squares leave the range of their dtype."""
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
    norm = _norm(G) if answer is None else answer.norm
    if isinstance(norm, Tensor):
        return _factorized(coordinates, R, rhs, lam, at_least(lam, FLOOR * eps * norm), norm)
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
            # With many right-hand sides, one product with the inverse is several times faster than two triangular
            # solves. The inverse is computed in float64, so it is as accurate as rhs's dtype allows.
            return torch.cholesky_inverse(self.L).neg_().to(rhs.dtype) @ rhs
        return torch.cholesky_solve(rhs.double(), self.L).neg_().to(rhs.dtype)


def _factorized(
    coordinates: Coordinates, R: Tensor, rhs: Tensor, lam: float, damping: Scalar, norm: Scalar
) -> Solution:
    """The solution from a Gram matrix in the layer's precision, with Frobenius norm `norm`, and a factor in float64."""
    G, features = coordinates.gram, coordinates.features
    factor = features.once((_Factor, damping), lambda: _Factor.of(G, damping))
    x, definite = factor.minus_solve(rhs), factor.definite
    x = choose(definite, lambda: x, lambda: rhs / -(lam + norm))
    finite = is_finite(squared_norm(x))
    squared_R = coordinates.squared_residual(R)
    norms = coordinates.norms_of(x, rhs, squared_R)

    def status() -> Scalar:
        solved = choose(damping > lam, lambda: Status.DAMPED, lambda: Status.SOLVED)
        return choose(definite, lambda: solved, lambda: Status.GRADIENT)

    def measure(squared_change: Scalar) -> Stats:
        start, end = squared_R(), norms()[0] + lam * squared_change
        return Stats.of(status(), finite, start, end, iterations=0, step_length=1.0, squared_change=squared_change)

    return Solution(coordinates, choose(finite, lambda: x, lambda: torch.zeros_like(x)), finite, measure)


def _from_answer(coordinates: Coordinates, R: Tensor, x: Tensor, lam: float, answer: closed.Answer) -> Solution:
    """The solution x of an answer, with metrics computed from the answer's sums."""
    start, energy, finite = coordinates.squared_residual(R), answer.energy, math.isfinite(answer.energy)
    minimum = coordinates.minimum  # a static method: `measure` must not keep the coordinates alive

    def measure(squared_change: Scalar) -> Stats:
        end = minimum(start(), -energy, lam)
        return Stats.of(
            Status.SOLVED, finite, start(), end, iterations=0, step_length=1.0, squared_change=squared_change
        )

    solution = Solution(coordinates, x if finite else torch.zeros_like(x), finite, measure)
    underflow = x.numel() * torch.finfo(x.dtype).tiny  # bounds the squares that underflowed
    bound = coordinates.squared_norm_bound(answer.largest, answer.XX + underflow)
    XX = coordinates.squared_norm_by(energy, answer.XX, lam)
    rounding = torch.finfo(x.dtype).eps * energy  # of <x, x>, which in the span is a difference
    if coordinates.resolves(XX - WELL_ABOVE * rounding, bound):
        solution.change_bound, solution.squared_change = bound, lambda: XX
    return solution


def _in_double_precision(coordinates: Coordinates, R: Tensor, lam: float) -> Solution:
    """The solution with all products in float64, as a displacement in direct coordinates; on the CPU only."""
    coordinates64, dtype, R = coordinates.to(torch.float64), R.dtype, R.double()
    features = coordinates64.features
    over_rows = features.over_rows
    norm, start = float(_norm(coordinates64.gram)), over_rows(R.square()).sum().item()
    if not math.isfinite(norm + start):
        return _zero_solution(coordinates, R.to(dtype))
    damping, minus_solve = _factor_with_damping(coordinates64, lam, norm, torch.finfo(dtype).eps)
    status = Status.GRADIENT if minus_solve is None else Status.DAMPED if damping > lam else Status.SOLVED
    if minus_solve is None:
        V = features.rmatmat(R) / -(damping + norm)
    else:
        V = _refined(coordinates64, R, lam, minus_solve, _REFINEMENTS if damping == lam else 0)
    V = V.to(dtype)
    # The objective along V, for every output unit: f(t V) = f(0) + 2 t slope + t^2 curvature.
    change_of_Z = features.matmat(V.double())
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


def _refined(coordinates: Coordinates, R: Tensor, lam: float, minus_solve: "MinusSolve", most: int) -> Tensor:
    """The displacement in direct coordinates, (..., n, m), with at most `most` refinements.

    The residual is computed with Phi V instead of G X, and V itself is corrected: for a small lam, the rounding of G
    matters, and so does that of Phi^T U for a large U. Each refinement multiplies the error by the rounding error of
    the factor / lam, which comes close to 1 if lam is hardly resolved.
    """
    features, over_rows = coordinates.features, coordinates.features.over_rows
    X = minus_solve(coordinates.adjoint(R))
    V = coordinates.entries(X)
    forward = features.matmat(V)
    for _ in range(most):
        correction = minus_solve(coordinates.adjoint(R + forward) + lam * X)
        X, change = X + correction, coordinates.entries(correction)
        V, before = V + change, forward
        forward = features.matmat(V)
        energy = over_rows((forward - before).square()) + lam * change.square().sum(-2)
        decrease = -(over_rows((2 * R + forward) * forward) + lam * V.square().sum(-2))
        unfinished = (energy > _NEGLIGIBLE * decrease.abs()).any().double()
        if not features.total(unfinished).item():  # ranks that share their rows have to agree
            break
    return V


def _norm(G: Tensor) -> Scalar:
    """The Frobenius norm; on the CPU also where squares of entries leave the range of the dtype."""
    norm = scalar(torch.linalg.vector_norm(G))
    if isinstance(norm, Tensor) or G.numel() == 0 or smallest_square(G.dtype) <= norm * norm < math.inf:
        return norm
    top = float(G.abs().amax())
    return top * float(torch.linalg.vector_norm(G / top)) if 0 < top < math.inf else norm


MinusSolve = Callable[[Tensor], Tensor]
"""Maps rhs to -(G + damping I)^-1 rhs, both (..., r, m)."""


def _factor_with_damping(
    coordinates64: Coordinates, lam: float, norm: float, eps: float
) -> tuple[float, MinusSolve | None]:
    """A damping >= lam with which G + damping I can be factored, and the solver; None if every attempt fails.

    Args:
        coordinates64: coordinates in float64.
        lam: proximal weight.
        norm: Frobenius norm of G.
        eps: of the displacement's dtype, as in `smallest_ratio`.
    """
    least = smallest_ratio(eps)
    if lam < least * norm:
        norm = float(torch.linalg.matrix_norm(coordinates64.gram, 2).max())
    damping = max(lam, least * norm)
    for _ in range(_ATTEMPTS):
        factor = _Factor.of(coordinates64.gram, damping)
        if factor.definite:
            return damping, factor.minus_solve
        damping *= 8
    return damping, None


def _zero_solution(coordinates: Coordinates, R: Tensor) -> Solution:
    """The displacement 0, because some input or result is not finite."""
    direct, stats = Direct(coordinates.features), Stats(Status.NONFINITE, 0.0, 0, 0.0, 0.0)
    return Solution(direct, torch.zeros_like(direct.adjoint(R)), False, lambda _: stats)
