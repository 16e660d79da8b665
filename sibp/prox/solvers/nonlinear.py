"""The nonlinear subproblem, by a few iterations of conjugate gradients.

    min  ||s(Phi [W_new, b_new]^T) - T||^2 + lam (||W_new - W||^2 + ||b_new - b||^2)        (paper, section 3)

The objective is a sum over the layer's neurons (the columns of Z), each with its own row of W. So every neuron gets its
own step length and conjugacy coefficient, while one product with the Gram matrix serves all neurons.

Rounding. The iterations add up changes of Z, which are K U in span coordinates. The layer gets the displacement
U^T Phi, whose change of Z differs from K U by up to e = eps ||K|| ||U||. If rows of Phi are linearly dependent, U can
be huge although the displacement is negligible, and e may exceed the residual R = s(Z) - T. The objective has an error
of 2 e ||R|| + lam e ||U||, at most 4 e ||R|| while lam ||U|| <= 2 ||R||. In direct coordinates the same holds with Phi
and V instead of K and U. So a neuron's answer is doubtful if e exceeds a thousandth of ||R||, or if the objective
decreases by less than 4 e ||R||. If any answer is doubtful, the iterations are repeated in float64. The objective is
then evaluated at the displacement in the layer's precision, and the displacement is shortened, or left out, where the
objective does not decrease. The iterations are also repeated where the squared residual or gradient of all neurons
together underflows, as they would find no step.
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

# Factor on a neuron's next Gauss-Newton step length after each rejected step in a row.
_SHRINK = 0.25
# Relative error of a residual above which a neuron's answer is doubtful.
_TOLERANCE = 1e-3
# Least ||beta P - G||^2 of a direction, as a share of ||beta P||^2 + ||G||^2: below, it is mostly rounding, which a
# long step would amplify.
_CANCELLATION = 1e-3
# Fractions of a displacement that are tried in turn, until one decreases the neuron's objective.
_PARTS = (1.0, 0.25, 0.0625)
# Assumed rounding error of a residual s(Z) - T, in units of eps ||T||; an overestimate.
_ROUNDING = 4.0


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is not positive, as for a dead or finished neuron."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def solve_nonlinear(
    coordinates: Coordinates, Z: Tensor, T: Target, lam: float, s: Activation, iterations: int
) -> Solution:
    """Decreases f(x) = ||s(Z + forward(x)) - T||^2 + lam <x, x>, starting from x = 0.

    Each iteration takes one Gauss-Newton step length along one Polak-Ribiere direction, whose coefficient beta is never
    negative. Where that direction is no descent direction, or is mostly rounding because its two terms cancel, the
    negative gradient replaces it. A neuron accepts its step only if the step decreases its f; otherwise it restarts
    with a shorter step. For s = identity this is the linear conjugate gradient method. Few iterations do not only save
    time: early stopping regularises.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m), or (g, B, P, m) for patches: pre-activations at the layer's present weights.
        T: target of s(Z), of the same shape; or a `Shifted`.
        lam: proximal weight, > 0.
        s: the layer's activation.
        iterations: their number, >= 1.

    Returns:
        x, its coordinates (the given ones, or direct ones), status and metrics. For any lam, f(x) <= f(0) holds for
        every neuron at the displacement, up to a rounding error of eps (||Z|| + ||T||) in the residual's norm. On an
        accelerator no value is read, so the iterations are never repeated: a neuron whose decrease may be mere rounding
        keeps its weights.
    """
    result = _run_iterations(coordinates, Z, T, lam, s, iterations)
    if (
        _may_read_values(Z)
        and _is_finite(result)
        and (result.doubtful > 0 or _has_underflowed(coordinates, Z, T, s, result))
    ):
        coordinates, result = _in_double_precision(coordinates, Z, _target_tensor(T, Z, s), lam, s, iterations)
    return _solution(coordinates, result, iterations)


def _has_underflowed(coordinates: Coordinates, Z: Tensor, T: Target, s: Activation, result: fused.Iterates) -> bool:
    """Whether the squared residual or gradient, which is not mere rounding, is too small for single precision."""
    least = smallest_square(Z.dtype)
    if Z.dtype is torch.float64 or min(result.start, result.gradient) >= least:
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
    """Whether decisions may depend on values; on the CPU only, since reading values synchronises an accelerator."""
    return Z.device.type == "cpu"


def _run_iterations(
    coordinates: Coordinates, Z: Tensor, T: Target, lam: float, s: Activation, iterations: int
) -> fused.Iterates:
    """The iterations, by compiled code if it supports the inputs."""
    if fused.usable(coordinates, Z, s):
        constants = {"shrink_factor": _SHRINK, "cancellation": _CANCELLATION}
        constants |= {"rounding_units": _ROUNDING, "tolerance": _TOLERANCE}
        return fused.iterate(coordinates, Z, _target_tensor(T, Z, s), lam, s, iterations, **constants)
    return _iterate(coordinates, Z, T, lam, s, iterations)


def _iterate(
    coordinates: Coordinates, Z: Tensor, T: Target, lam: float, s: Activation, iterations: int
) -> fused.Iterates:
    """The iterations as torch operations, for any activation, coordinates and device."""
    outputs = outputs_of(coordinates.features, Z, T, s)
    coordinates = coordinates.on(outputs.features)
    f = start = outputs.residual()
    x = Z.new_zeros(*f.shape[:-1], coordinates.size, f.shape[-1])
    P = G_old = x
    norm, gg_old, pp, shrink = torch.zeros_like(f), torch.zeros_like(f), torch.zeros_like(f), torch.ones_like(f)
    # A squared gradient no larger than the rounding of s(Z) - T carries no information: the neuron is finished.
    unit = (_ROUNDING * torch.finfo(Z.dtype).eps) ** 2
    negligible = unit * coordinates.amplification * outputs.squared_target
    step_sum, gradient_sum = f.new_zeros(()), f.new_zeros(())
    for iteration in range(iterations):
        # Half of f's gradient, as coefficients: adjoint((s(Z) - T) s'(Z)) + lam x.
        G = coordinates.adjoint(outputs.take_E()) + lam * x
        forward_G = coordinates.forward(G)
        moving = G.square().sum(-2) > negligible
        gg = coordinates.squared_norm(G, forward_G) * moving  # a product, unlike `where`, preserves NaN and Inf
        beta = _ratio(gg - coordinates.inner(G_old, G, forward_G), gg_old).clamp_(min=0)
        gp = coordinates.inner(G, P, outputs.KP)
        beta = _descent_beta(beta, coordinates.inner(G, G, forward_G), gp, pp)
        P = beta.unsqueeze(-2) * P - G
        curvature = outputs.redirect(beta, forward_G)
        del forward_G  # as large as Z
        slope, pp, xp = (coordinates.inner(y, P, outputs.KP) for y in (-G, P, x))
        t = shrink * _ratio(slope, curvature + lam * pp) * (gg > 0)
        norm_try = norm + t * (2 * xp + t * pp)
        last = iteration == iterations - 1
        f_try = outputs.attempt(t, last) + lam * norm_try
        accept = f_try < f
        step = torch.where(accept, t, 0.0)
        if not last:
            outputs.move(step)
        x = torch.where(accept.unsqueeze(-2), x + t.unsqueeze(-2) * P, x)
        f, norm = torch.where(accept, f_try, f), torch.where(accept, norm_try, norm)
        shrink = torch.where(accept, 1.0, shrink * _SHRINK)
        step_sum += step.mean()
        gradient_sum += gg.sum()
        G_old, gg_old = G, gg
    doubtful = _doubtful(coordinates, x, start, f, _TOLERANCE)
    if not _may_read_values(Z):
        unproven = _doubtful(coordinates, x, start, f, math.inf)
        x, f = torch.where(unproven.unsqueeze(-2), 0.0, x), torch.where(unproven, start, f)
    return fused.Iterates(x, norm.sum(), start.sum(), f.sum(), gradient_sum, step_sum / iterations, doubtful.sum())


def _doubtful(coordinates: Coordinates, x: Tensor, start: Tensor, end: Tensor, tolerance: float) -> Tensor:
    """Whether an answer x (..., r, m) may be dominated by rounding, (..., m): see the module docstring.

    Args:
        coordinates: of x.
        x: coefficients.
        start: (..., m) f(0), which is ||R||^2.
        end: (..., m) f(x), as accumulated by the iterations.
        tolerance: largest e / ||R|| of an answer that is not doubtful.
    """
    error = coordinates.squared_norm_of_forward * torch.finfo(x.dtype).eps ** 2 * x.square().sum(-2) / start
    return (error > tolerance**2) | (((start - end) / start).square() < 16 * error)


def _in_double_precision(
    coordinates: Coordinates, Z: Tensor, T: Tensor, lam: float, s: Activation, iterations: int
) -> tuple[Coordinates, fused.Iterates]:
    """The iterations in float64, from a displacement in direct coordinates; on the CPU only."""
    coordinates64, dtype, Z, T = coordinates.to(torch.float64), Z.dtype, Z.double(), T.double()
    result, features = _run_iterations(coordinates64, Z, T, lam, s, iterations), coordinates64.features
    V = coordinates64.entries(result.x).to(dtype)
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
    result = result._replace(x=V, squared_change=squared_change, start=start.sum(), end=end.sum())
    return Direct(coordinates.features), result


def _is_finite(result: fused.Iterates) -> Flag:
    """Whether all numbers are finite."""
    return is_finite(scalar(result.start + result.end + result.squared_change + result.gradient))


def _descent_beta(beta: Tensor, gg: Tensor, gp: Tensor, pp: Tensor) -> Tensor:
    """beta, but 0 for neurons where beta P - G is no descent direction, or mostly rounding because both terms cancel.

    Args:
        beta: (..., m) conjugacy coefficients.
        gg: <G, G>.
        gp: <G, P>, of the gradient and the last direction.
        pp: <P, P>.
    """
    squared_norm = gg + beta * (beta * pp - 2 * gp)  # of beta P - G
    useless = (beta * gp >= gg) | (squared_norm <= _CANCELLATION * (gg + beta * beta * pp))
    return torch.where(useless, 0.0, beta)


def _solution(coordinates: Coordinates, result: fused.Iterates, iterations: int) -> Solution:
    """The iterations' result as a `Solution`, with x = 0 if it is not finite."""
    start, end, gradient, step_length = map(scalar, (result.start, result.end, result.gradient, result.step_length))
    x, finite = result.x, _is_finite(result)

    def measure(squared_change: Scalar) -> Stats:
        stalled = (end >= start) & (gradient > 0)
        status = choose(stalled, lambda: Status.STALLED, lambda: Status.SOLVED)
        return Stats.of(
            status, finite, start, end, iterations=iterations, step_length=step_length, squared_change=squared_change
        )

    bound, norm = result.change_bound, scalar(result.squared_change)
    resolved = bound < math.inf and coordinates.resolves(norm, bound)
    x = choose(finite, lambda: x, lambda: torch.zeros_like(x))
    return Solution(coordinates, x, finite, measure, bound, (lambda: norm) if resolved else None)
