"""The closed form in the layer's precision, with a check of the answer, for a lam too small to guarantee its accuracy.

The notation is that of `sibp.prox.solvers.linear`. A computed x leaves a residual e = rhs + (G + lam I) x in the normal
equations with the exact G. Its objective exceeds the minimum by

    direct   e^T (G + lam I)^-1 e  <=  ||e||^2 / mu,   mu the smallest eigenvalue of G + lam I
    span     at most ||e||^2, since the displacement depends on Phi^T e only.

There are three errors:

- The error of the factor is rhs + (G + lam I) x with the computed G. Forming it for all output units would cost as much
  as solving. So it is multiplied by 16 vectors of random signs: each product has the norm of the error on average
  (Freivalds 1977).
- The rounding error E of G adds E x. In the span, ||E x|| is taken as eps ||G|| ||x||. In direct coordinates, an entry
  of G is a long sum, whose error is about eps times the norms of its two columns of Phi. With independent errors
  (Higham & Mary 2019, SIAM J. Sci. Comput. 41), ||E x||^2 is about eps^2 tr(G) sum_j G_jj ||x_j||^2.
- In direct coordinates, rhs is rounded, too. The error of its row j is about eps sqrt(G_jj) ||R||, and at most
  eps ||Phi|| ||R|| for all rows. The rows' errors are independent, so they raise the objective by
  eps^2 ||R||^2 sum_j G_jj [(G + lam I)^-1]_jj. (The rows of E x are not independent, since entries of a convolution's
  G share their sums.)

1 / mu and the weighted trace are estimated by random signs, too. The answer is accepted if all errors together raise
the objective by less than a hundred-thousandth of its decrease. A rule based on lam alone would have to assume
mu = lam and ||x|| = ||R|| / sqrt(lam). With features such as those of a convolution over thousands of patches, mu is
far larger and ||x|| far smaller.

A rejected answer is refined as the displacement V = Phi^T x (V = x in direct coordinates): e is computed with Phi
instead of G, and a correction is solved for. The rounding of G then affects the correction only.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from sibp.prox import closed
from sibp.prox.blocked import factor_in_place
from sibp.prox.scalars import Scalar
from sibp.prox.solvers.coordinates import Coordinates, Direct
from sibp.prox.status import Solution, Stats, Status

SINGLE = 256  # rows from which factoring in single precision saves more than the check costs
_PROBES = 16  # random vectors that estimate a residual
_SAFETY = 4.0  # factor on estimates; the chance that an estimate is 100 times too small is 1e-13
_TOLERANCE = 1e-5  # largest excess of the objective over its minimum, as a share of the decrease
_REFINEMENTS = 2
FLOOR = 16.0  # lam / (eps ||G||) below which lam is lost in the rounding of G


def smallest_ratio(eps: float) -> float:
    """The least lam / ||G|| that can be solved for in float64.

    Below it, lam is lost in the rounding of G, or the rounding of V to its dtype matters. Rounding V changes Z by up to
    eps ||Phi|| ||V||, where ||V|| <= ||R|| / sqrt(lam): from this ratio on, by at most ||R|| / 16.

    Args:
        eps: of the displacement's dtype.
    """
    return max(FLOOR * torch.finfo(torch.float64).eps, (FLOOR * eps) ** 2)


def checked(coordinates: Coordinates, R: Tensor, rhs: Tensor, lam: float, norm: float) -> Solution | None:
    """The solution from a Gram matrix in the layer's precision, on the CPU; None if it is not accurate enough.

    Args:
        coordinates: of the layer's features.
        R: (..., N, m) residual Z - T.
        rhs: (..., r, m) adjoint(R).
        lam: proximal weight, > 0.
        norm: Frobenius norm of the Gram matrix.
    """
    features = coordinates.features
    start = float(features.total(torch.linalg.vector_norm(R).double().square()))
    if not math.isfinite(norm + start) or lam < smallest_ratio(torch.finfo(rhs.dtype).eps) * norm:
        return None
    task = _Task(coordinates, R, rhs, lam, norm, start)
    large = rhs.dtype is torch.float32 and coordinates.size >= SINGLE
    for dtype in (torch.float32, torch.float64) if large else (torch.float64,):
        system = features.once((_System, lam, dtype), partial(_System.of, coordinates, lam, dtype))
        if system is not None and (solved := task.solve(system)) is not None:
            x, decrease = solved
            return task.solution(x, decrease) if task.survives_rounding(system, x, decrease) else task.refine(system, x)
    return None


@dataclass(frozen=True)
class _System:
    """G + lam I with its Cholesky factor.

    Attributes:
        direct: whether G is that of direct coordinates.
        lam: damping.
        L: (..., r, r); only its lower triangle is read.
    """

    direct: bool
    lam: float
    L: Tensor

    @classmethod
    def of(cls, coordinates: Coordinates, lam: float, dtype: torch.dtype) -> "_System | None":
        """Factors the system in a dtype; None if it is not positive definite in it."""
        system = coordinates.gram.to(dtype, copy=True)
        system.diagonal(dim1=-2, dim2=-1).add_(lam)
        if system.numel() == system.shape[-1] ** 2:  # a single matrix
            return cls(coordinates.direct, lam, system) if factor_in_place(system.view(system.shape[-2:])) else None
        L, info = torch.linalg.cholesky_ex(system)
        return None if info.any() else cls(coordinates.direct, lam, L)

    def minus_solve(self, rhs: Tensor) -> Tensor:
        """-(G + lam I)^-1 rhs, (..., r, m), in the dtype of rhs."""
        wide = rhs.to(self.L.dtype)
        x = closed.minus_substitute(self.L, wide)
        return (torch.cholesky_solve(wide, self.L).neg_() if x is None else x).to(rhs.dtype)

    @cached_property
    def _norm_of_inverse(self) -> float:
        """Frobenius norm of (G + lam I)^-1, which bounds 1 / mu; for a large system an estimate."""
        size = self.L.shape[-1]
        if size <= 2 * _PROBES:
            return float(torch.linalg.vector_norm(torch.cholesky_inverse(self.L)))
        probes = self.minus_solve(random_signs(size, self.L.dtype).expand(*self.L.shape[:-1], -1))
        return math.sqrt(_SAFETY / _PROBES) * float(torch.linalg.vector_norm(probes))

    def weighted_trace(self, diagonal: Tensor) -> float:
        """sum_j d_j [(G + lam I)^-1]_jj for a diagonal d (..., r), or an estimate that is very rarely too small."""
        size = self.L.shape[-1]
        if size < SINGLE:
            inverse = torch.cholesky_inverse(self.L)
            return float((diagonal * inverse.diagonal(dim1=-2, dim2=-1)).sum())
        probes = diagonal.sqrt().to(self.L.dtype).unsqueeze(-1) * random_signs(size, self.L.dtype)
        return -_SAFETY / _PROBES * float((probes * self.minus_solve(probes)).sum())

    def tolerates(self, squared_error: float, decrease: float, excess: float = 0.0) -> bool:
        """Whether ||e||^2 and a known excess raise the objective by a negligible share of its decrease."""
        allowed = _TOLERANCE * decrease - excess
        if not self.direct:
            return squared_error <= allowed
        return squared_error / self.lam <= allowed or squared_error * self._norm_of_inverse <= allowed


@dataclass(frozen=True)
class _Task:
    """The arguments of `checked`, and start = ||R||^2."""

    coordinates: Coordinates
    R: Tensor
    rhs: Tensor
    lam: float
    norm: float
    start: float

    @property
    def _eps(self) -> float:
        return torch.finfo(self.rhs.dtype).eps

    def solve(self, system: _System) -> tuple[Tensor, float] | None:
        """The solution x and its decrease of the objective; None if x is less accurate than with a float64 factor."""
        x = system.minus_solve(self.rhs)
        if system.L.dtype is not self.rhs.dtype:
            return x, self.decrease(x)
        for _ in range(1 + _REFINEMENTS):
            decrease = self.decrease(x)
            if system.tolerates(self._squared_error(x), decrease):
                return x, decrease
            x = x + system.minus_solve(self._residual(x, self.rhs))
        return None

    def _residual(self, x: Tensor, rhs: Tensor) -> Tensor:
        """The residual e = rhs + (G + lam I) x."""
        return (self.coordinates.gram @ x).add_(rhs).add_(x, alpha=self.lam)

    def _squared_error(self, x: Tensor) -> float:
        """||e||^2, or an estimate that is very rarely too small."""
        units = x.shape[-1]
        if units <= 2 * _PROBES:
            return _squared(self._residual(x, self.rhs))
        S = random_signs(units, x.dtype)
        return _estimate(_squared(self._residual(x @ S, self.rhs @ S)), units)

    def survives_rounding(self, system: _System, x: Tensor, decrease: float, uncertain: Tensor | None = None) -> bool:
        """Whether x is accurate despite rounding; `uncertain` is the part of x that the error of G affects, or all."""
        error = self._rounding_error(x if uncertain is None else uncertain)
        if not self.coordinates.direct:
            return system.tolerates(error, decrease)
        of_rhs = self._eps**2 * self.start
        return system.tolerates(error + of_rhs * self.norm, decrease) or system.tolerates(
            error, decrease, of_rhs * system.weighted_trace(self._diagonal)
        )

    @cached_property
    def _diagonal(self) -> Tensor:
        """The diagonal of G, (..., r), in float64."""
        return self.coordinates.gram.diagonal(dim1=-2, dim2=-1).double()

    def _rounding_error(self, x: Tensor) -> float:
        """An estimate of the part of ||e||^2 that the rounding of G causes; usually several times too large."""
        if not self.coordinates.direct:
            norm_of_E = self._eps * self.norm
            return norm_of_E * norm_of_E * _squared(x)
        diagonal = self._diagonal
        weighted = (diagonal * x.square().sum(-1).double()).sum(-1)
        return _SAFETY * self._eps**2 * float((diagonal.sum(-1) * weighted).sum())

    def decrease(self, x: Tensor) -> float:
        """The decrease of the objective by an x that solves the system."""
        return self.start - float(self.coordinates.minimum(self.start, float((self.rhs * x).sum()), self.lam))

    def solution(self, x: Tensor, decrease: float) -> Solution:
        """The answer x, with the decrease of a solved system; the checks have shown that it is accurate."""
        return Solution(self.coordinates, x, True, partial(_solved, self.start, self.start - decrease))

    def refine(self, system: _System, x: Tensor) -> Solution | None:
        """The displacement of x, corrected with Phi itself; None if that is not accurate enough, either."""
        coordinates, features = self.coordinates, self.coordinates.features
        V = coordinates.entries(x)
        for _ in range(_REFINEMENTS):
            R = self.R + features.matmat(V)
            e = coordinates.adjoint(R) + self.lam * x
            objective = float(features.over_rows(R.square()).sum()) + self.lam * _squared(V)
            correction = system.minus_solve(e)
            forward = correction if coordinates.direct else coordinates.forward(correction)  # unused if direct
            change = float(coordinates.inner(e, correction, forward).sum())
            x, V = x + correction, V + coordinates.entries(correction)
            if self._eps * objective > _TOLERANCE * self.start:
                continue  # `objective + change` would be a difference of large numbers
            if self.survives_rounding(system, x, self.decrease(x), uncertain=correction) and math.isfinite(_squared(V)):
                return Solution(Direct(features), V, True, partial(_solved, self.start, objective + change))
        return None


def _solved(start: Scalar, end: Scalar, squared_change: Scalar) -> Stats:
    return Stats.of(Status.SOLVED, True, start, end, iterations=0, step_length=1.0, squared_change=squared_change)


def is_accurate(answer: closed.Answer, lam: float, eps: float, units: int) -> bool:
    """Whether an answer in span coordinates is accurate: because lam is large enough, or by its residual.

    Args:
        answer: its x is not None.
        lam: proximal weight.
        eps: of x's dtype.
        units: number of columns of x.
    """
    sums = answer.residual_sums
    if sums is None:
        return True
    decrease = sums.RR + lam * sums.RX
    norm_of_E = eps * answer.norm
    error = _estimate(sums.error, units) + norm_of_E * norm_of_E * answer.XX
    return lam >= smallest_ratio(eps) * answer.norm and error <= _TOLERANCE * decrease < math.inf


def _estimate(squared_error: float, units: int) -> float:
    """||e||^2 from ||e S||^2, with S from `random_signs`; very rarely too small."""
    return squared_error if units <= _PROBES else _SAFETY * squared_error / _PROBES


@lru_cache(maxsize=32)
def random_signs(units: int, dtype: torch.dtype) -> Tensor:
    """S (units, _PROBES), entries 1 and -1 at random; equal in every process, so that a resumed run repeats its steps.

    For at most `_PROBES` units it is a part of the identity, so that ||e S|| = ||e||.
    """
    if units <= _PROBES:
        return torch.eye(units, _PROBES, dtype=dtype)
    drawn = torch.randint(2, (units, _PROBES), generator=torch.Generator().manual_seed(units))
    return drawn.to(dtype).mul_(2).sub_(1)


def _squared(x: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(x))
    return norm * norm  # infinite on overflow, where a power raises
