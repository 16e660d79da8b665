"""The nonlinear subproblem, by a few iterations of conjugate gradients.

    min  ||s(Phi [W_new, b_new]^T) - T||^2 + lam (||W_new - W||^2 + ||b_new - b||^2)        (paper, section 3)

The objective is a sum over the layer's neurons (columns), each with its own W row, so every neuron gets its own step
length and its own conjugacy coefficient, while the products with the Gram matrix serve all neurons at once.

How far the objective that the iterations see can be from that of the displacement. They add up the change of Z, K U in
span coordinates, while the layer gets U^T Phi, whose change of Z differs from it by up to e = eps ||K|| ||U||. Where
rows of Phi are linearly dependent, U can be huge and its displacement negligible: then e may exceed the residual
R = s(Z) - T. The objective has an error of 2 e ||R|| + lam e ||U||, at most 4 e ||R|| while lam ||U|| <= 2 ||R||. The
same holds in direct coordinates with Phi and V. So a neuron's answer is doubtful if e exceeds a thousandth of ||R||, or
if its decrease is less than 4 e ||R||; then the iterations are repeated in float64, with the objective evaluated at
the displacement in the layer's precision, and the displacement shortened where the objective does not decrease. They
also are where the squared residual or gradient of all neurons together underflows: no step would be found.
"""

import math

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox import fused
from sibp.prox.outputs import Shifted, Target, outputs_of
from sibp.prox.scalars import Flag, Scalar, choose, is_finite, scalar
from sibp.prox.solvers.coordinates import Coordinates, Direct
from sibp.prox.status import Solution, Stats, Status, smallest_square

# A neuron whose step was rejected tries this fraction of the model's step length in its next iteration.
_SHRINK = 0.25
# Relative error of a residual above which a neuron's answer is doubtful.
_TOLERANCE = 1e-3
# Share of two directions' squared norms that their difference must exceed: a smaller one is rounding, which a long step
# would amplify.
_CANCELLATION = 1e-3
# Fractions of a displacement tried in turn until one decreases the layer's objective.
_PARTS = (1.0, 0.25, 0.0625)
# Units in the last place by which a residual's rounding is overestimated.
_ROUNDING = 4.0


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is not positive (a dead or finished neuron)."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def solve_nonlinear(
    coordinates: Coordinates, Z: Tensor, T: Target, lam: float, s: Activation, iterations: int
) -> Solution:
    """Decreases f(x) = ||s(Z + forward(x)) - T||^2 + lam <x, x>, starting from x = 0.

    Each iteration takes one Polak-Ribiere direction (never negative, and replaced by the negative gradient where it is
    not a direction of descent, or where gradient and last direction cancel) and one Gauss-Newton step length along it,
    and accepts it neuron by neuron only if it decreases f. A rejected neuron restarts with a shorter step. For
    s = identity this is the linear conjugate gradient method. Few iterations are a choice, not only a saving: stopping
    early regularises.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m), or (g, B, P, m) for patches: pre-activations at the layer's present weights.
        T: target of s(Z), of the same shape; or `Shifted`.
        lam: proximal weight, > 0.
        s: the layer's activation.
        iterations: their number, >= 1.

    Returns:
        x, with the coordinates that it is in (the given ones, or direct ones), status and metrics; for any lam,
        f(x) <= f(0) neuron by neuron, as evaluated at the displacement, up to the rounding of the subproblem itself:
        eps (||Z|| + ||T||) on the residual's norm. On an accelerator, where a decision would wait for the device, a
        neuron whose decrease may be mere rounding keeps its weights.
    """
    taken = _run_iterations(coordinates, Z, T, lam, s, iterations)
    if (
        _may_read_values(Z)
        and _is_finite(taken)
        and (taken.doubtful > 0 or _has_underflowed(coordinates, Z, T, s, taken))
    ):
        coordinates, taken = _in_double_precision(coordinates, Z, _target_tensor(T, Z, s), lam, s, iterations)
    return _solution(coordinates, taken, iterations)


def _has_underflowed(coordinates: Coordinates, Z: Tensor, T: Target, s: Activation, taken: fused.Iterates) -> bool:
    """Whether the squared residual or gradient, which is not mere rounding, is too small for single precision."""
    least = smallest_square(Z.dtype)
    if Z.dtype is torch.float64 or min(taken.start, taken.gradient) >= least:
        return False
    over_rows, T = coordinates.features.over_rows, _target_tensor(T, Z, s)
    R = s.value(Z) - T
    G = coordinates.adjoint(R * s.slope(Z))
    start, target = (over_rows(array.double().square()) for array in (R, T))
    rounding = (_ROUNDING * torch.finfo(Z.dtype).eps) ** 2 * target
    gradient = coordinates.inner(G.double(), G.double(), coordinates.forward(G).double())
    moving = (gradient > 0) & (start > rounding)
    return bool(moving.any()) and float((torch.minimum(start, gradient) * moving).sum()) < least


def _target_tensor(T: Target, Z: Tensor, s: Activation) -> Tensor:
    return T.evaluate(Z, s) if isinstance(T, Shifted) else T


def _may_read_values(Z: Tensor) -> bool:
    """Whether values may be read to decide: on the CPU only, as reading synchronises an accelerator."""
    return Z.device.type == "cpu"


def _run_iterations(
    coordinates: Coordinates, Z: Tensor, T: Target, lam: float, s: Activation, iterations: int
) -> fused.Iterates:
    """The iterations, compiled where supported."""
    if fused.usable(coordinates, Z, s):
        constants = {"shrink_factor": _SHRINK, "cancellation": _CANCELLATION}
        constants |= {"rounding_units": _ROUNDING, "tolerance": _TOLERANCE}
        return fused.iterate(coordinates, Z, _target_tensor(T, Z, s), lam, s, iterations, **constants)
    return _iterate(coordinates, Z, T, lam, s, iterations)


def _iterate(
    coordinates: Coordinates, Z: Tensor, T: Target, lam: float, s: Activation, iterations: int
) -> fused.Iterates:
    """The iterations themselves, for any activation, coordinates and device."""
    outputs = outputs_of(coordinates.features, Z, T, s)
    coordinates = coordinates.on(outputs.features)
    f = start = outputs.residual()
    x = Z.new_zeros(*f.shape[:-1], coordinates.size, f.shape[-1])
    P = G_old = x
    norm, gg_old, pp, shrink = torch.zeros_like(f), torch.zeros_like(f), torch.zeros_like(f), torch.ones_like(f)
    # Rounding of s(Z) - T, squared: a gradient no larger carries no information, and the neuron is done.
    unit = (_ROUNDING * torch.finfo(Z.dtype).eps) ** 2
    negligible = unit * coordinates.amplification * outputs.target_norm
    step_sum, slope_sum = f.new_zeros(()), f.new_zeros(())
    for iteration in range(iterations):
        # Half of f's gradient, as coefficients: adjoint((s(Z) - T) s'(Z)) + lam x.
        G = coordinates.adjoint(outputs.take_E()) + lam * x
        forward_G = coordinates.forward(G)
        moving = G.square().sum(-2) > negligible
        gg = coordinates.squared_norm(G, forward_G) * moving  # a product preserves NaN and Inf
        beta = _ratio(gg - coordinates.inner(G_old, G, forward_G), gg_old).clamp_(min=0)
        gp = coordinates.inner(G, P, outputs.KP)
        beta = _descent_beta(beta, coordinates.inner(G, G, forward_G), gp, pp)
        P = beta.unsqueeze(-2) * P - G
        curvature = outputs.redirect(beta, forward_G)
        del forward_G  # as large as all other arrays
        slope, pp, xp = (coordinates.inner(y, P, outputs.KP) for y in (-G, P, x))
        t = shrink * _ratio(slope, curvature + lam * pp) * (gg > 0)
        norm_try = norm + t * (2 * xp + t * pp)
        last = iteration == iterations - 1
        f_try = outputs.attempt(t, last) + lam * norm_try
        accept = f_try < f
        taken = torch.where(accept, t, 0.0)
        if not last:
            outputs.move(taken)
        x = torch.where(accept.unsqueeze(-2), x + t.unsqueeze(-2) * P, x)
        f, norm = torch.where(accept, f_try, f), torch.where(accept, norm_try, norm)
        shrink = torch.where(accept, 1.0, shrink * _SHRINK)
        step_sum += taken.mean()
        slope_sum += gg.sum()
        G_old, gg_old = G, gg
    doubtful = _doubtful(coordinates, x, start, f, _TOLERANCE)
    if not _may_read_values(Z):
        risen = _doubtful(coordinates, x, start, f, math.inf)
        x, f = torch.where(risen.unsqueeze(-2), 0.0, x), torch.where(risen, start, f)
    return fused.Iterates(x, norm.sum(), start.sum(), f.sum(), slope_sum, step_sum / iterations, doubtful.sum())


def _doubtful(coordinates: Coordinates, x: Tensor, start: Tensor, end: Tensor, tolerance: float) -> Tensor:
    """Whether an answer x (..., r, m) may be dominated by rounding, (..., m): see the module docstring.

    Args:
        coordinates: of x.
        x: coefficients.
        start: (..., m) f(0), which is ||R||^2.
        end: (..., m) f(x), as accumulated by the iterations.
        tolerance: of e / ||R||.
    """
    error = coordinates.squared_norm_of_forward * torch.finfo(x.dtype).eps ** 2 * x.square().sum(-2) / start
    return (error > tolerance**2) | (((start - end) / start).square() < 16 * error)


def _in_double_precision(
    coordinates: Coordinates, Z: Tensor, T: Tensor, lam: float, s: Activation, iterations: int
) -> tuple[Coordinates, fused.Iterates]:
    """The iterations in float64, from a displacement in direct coordinates; on the CPU only."""
    side, dtype, Z, T = coordinates.to(torch.float64), Z.dtype, Z.double(), T.double()
    taken, features = _run_iterations(side, Z, T, lam, s, iterations), side.features
    V = side.entries(taken.x).to(dtype)
    change_of_Z, squared_norm = features.matmat(V.double()), V.double().square().sum(-2)

    def objective(t: Tensor) -> Tensor:
        residual = s.value(Z + features.spread(t) * change_of_Z) - T
        return features.over_rows(residual.square()) + lam * t.square() * squared_norm

    t = torch.zeros_like(squared_norm)
    start = end = objective(t)
    for part in _PARTS:
        f = objective(torch.full_like(t, part))
        better = (t == 0) & (f < start)
        t, end = torch.where(better, part, t), torch.where(better, f, end)
    V = torch.where((t > 0).unsqueeze(-2), V * t.unsqueeze(-2).to(dtype), 0.0)
    squared_change = (t.square() * squared_norm).sum()
    ended = taken._replace(x=V, squared_change=squared_change, start=start.sum(), end=end.sum())
    return Direct(coordinates.features), ended


def _is_finite(taken: fused.Iterates) -> Flag:
    """Whether all numbers are finite."""
    return is_finite(scalar(taken.start + taken.end + taken.squared_change + taken.gradient))


def _descent_beta(beta: Tensor, gg: Tensor, gp: Tensor, pp: Tensor) -> Tensor:
    """beta, but 0 for neurons where beta P - G is no descent direction, or the rounding of two equal vectors.

    Args:
        beta: (..., m) conjugacy coefficients.
        gg: <G, G>.
        gp: <G, P>, of the gradient and the last direction.
        pp: <P, P>.
    """
    left = gg + beta * (beta * pp - 2 * gp)
    useless = (beta * gp >= gg) | (left <= _CANCELLATION * (gg + beta * beta * pp))
    return torch.where(useless, 0.0, beta)


def _solution(coordinates: Coordinates, taken: fused.Iterates, iterations: int) -> Solution:
    """The iterations' result as a `Solution`, 0 if it is not finite."""
    start, end, gradient, step_length = map(scalar, (taken.start, taken.end, taken.gradient, taken.step_length))
    x, finite = taken.x, _is_finite(taken)

    def measure(squared_change: Scalar) -> Stats:
        stalled = (end >= start) & (gradient > 0)
        status = choose(stalled, lambda: Status.STALLED, lambda: Status.SOLVED)
        return Stats.of(
            status, finite, start, end, iterations=iterations, step_length=step_length, squared_change=squared_change
        )

    most, norm = taken.change_bound, scalar(taken.squared_change)
    resolved = most < math.inf and coordinates.resolves(norm, most)
    x = choose(finite, lambda: x, lambda: torch.zeros_like(x))
    return Solution(coordinates, x, finite, measure, most, (lambda: norm) if resolved else None)
