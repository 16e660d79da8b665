"""The nonlinear subproblem, by a few rounds of conjugate gradients.

    min  ||s(Phi [W', b']') - T||^2 + lam (||W' - W||^2 + ||b' - b||^2)        (paper, section 3; DESIGN section 2)

The objective is a sum over the layer's neurons (columns), each with its own W row, so every neuron gets its own step
length and its own conjugacy coefficient, while the products with the Gram matrix serve all neurons at once.
"""

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox import fused
from sibp.prox.images import images_of
from sibp.prox.numbers import Number, choose, is_finite, number
from sibp.prox.solvers.coordinates import Coordinates
from sibp.prox.status import Solution, Stats, Status

# A neuron whose step was refused tries this fraction of the model's step length in its next round.
_SHRINK = 0.25
# Units in the last place by which a residual's rounding is overestimated.
_ROUNDING = 4.0


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the denominator is not positive (a dead or finished neuron)."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def solve_nonlinear(coordinates: Coordinates, Z: Tensor, T: Tensor, lam: float, s: Activation, rounds: int) -> Solution:
    """Decreases f(x) = ||s(Z + forward(x)) - T||^2 + lam <x, x>, starting from x = 0.

    Each round takes one Polak-Ribiere direction (never negative, and replaced by the negative gradient where it is not
    a direction of descent) and one Gauss-Newton step length along it, and accepts it neuron by neuron only if it
    decreases f. A refused neuron starts afresh with a shorter step. For s = identity this is the linear conjugate
    gradient method. Few rounds are a choice, not only a saving: stopping early regularises.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m), or (g, B, P, m) for patches: pre-activations at the layer's present weights.
        T: target of s(Z), of the same shape.
        lam: proximal weight, > 0.
        s: the layer's activation.
        rounds: number of rounds, >= 1.

    Returns:
        x in the given coordinates, with status and figures; f(x) <= f(0) neuron by neuron.
    """
    if fused.usable(coordinates, Z, s):
        taken = fused.rounds(coordinates, Z, T, lam, s, rounds, _SHRINK, _ROUNDING)
    else:
        taken = _rounds(coordinates, Z, T, lam, s, rounds)
    return _solution(coordinates, taken, rounds)


def _rounds(coordinates: Coordinates, Z: Tensor, T: Tensor, lam: float, s: Activation, rounds: int) -> fused.Rounds:
    """The rounds themselves, for any activation, coordinates and device."""
    features = coordinates.features
    images = images_of(features, Z, T, s)
    f = images.residual()
    start = f.sum()
    x = Z.new_zeros(*f.shape[:-1], coordinates.size, f.shape[-1])
    D = G_old = x
    norm, gg_old, shrink = torch.zeros_like(f), torch.zeros_like(f), torch.ones_like(f)
    # s(Z) - T rounds by this much, squared: a gradient no larger says nothing, and the neuron is done.
    unit = (_ROUNDING * torch.finfo(Z.dtype).eps) ** 2
    negligible = unit * coordinates.amplification * features.over_rows(T.square())
    step_sum, slope_sum = torch.zeros_like(start), torch.zeros_like(start)
    for _ in range(rounds):
        # Half of f's gradient, as coefficients: adjoint((s(Z) - T) s'(Z)) + lam x.
        G = coordinates.adjoint(images.E) + lam * x
        forward_G = coordinates.forward(G)
        moving = G.square().sum(-2) > negligible
        gg = coordinates.squared_norm(G, forward_G) * moving  # a product: what is not finite stays so
        beta = _ratio(gg - coordinates.inner(G_old, G, forward_G), gg_old).clamp_(min=0)
        beta = _descent_only(coordinates, beta, G, forward_G, D, images.KD)
        D = beta.unsqueeze(-2) * D - G
        curvature = images.redirect(beta, forward_G)
        gd, dd, xd = (coordinates.inner(y, D, images.KD) for y in (-G, D, x))
        t = shrink * _ratio(gd, curvature + lam * dd) * (gg > 0)
        norm_try = norm + t * (2 * xd + t * dd)
        f_try = images.attempt(t) + lam * norm_try
        accept = f_try < f
        taken = torch.where(accept, t, 0.0)
        images.move(taken)
        x = torch.where(accept.unsqueeze(-2), x + t.unsqueeze(-2) * D, x)
        f, norm = torch.where(accept, f_try, f), torch.where(accept, norm_try, norm)
        shrink = torch.where(accept, 1.0, shrink * _SHRINK)
        step_sum += taken.mean()
        slope_sum += gg.sum()
        G_old, gg_old = G, gg
    return fused.Rounds(x, norm.sum(), start, f.sum(), slope_sum, step_sum / rounds)


def _descent_only(
    coordinates: Coordinates, beta: Tensor, G: Tensor, forward_G: Tensor, D: Tensor, forward_D: Tensor
) -> Tensor:
    """beta, but 0 for neurons where -G + beta D would not descend: <G, -G + beta D> >= 0."""
    ascends = beta * coordinates.inner(G, D, forward_D) >= coordinates.inner(G, G, forward_G)
    return torch.where(ascends, 0.0, beta)


def _solution(coordinates: Coordinates, taken: fused.Rounds, rounds: int) -> Solution:
    """Checks what came out and words it as a `Solution`."""
    x, *figures = taken
    norm, start, end, gradient, step_length = map(number, figures)
    finite = is_finite(start + end + norm + gradient)

    def measure(squared_change: Number) -> Stats:
        stalled = (end >= start) & (gradient > 0)
        status = choose(stalled, lambda: Status.STALLED, lambda: Status.SOLVED)
        return Stats.of(
            status, finite, start, end, rounds=rounds, step_length=step_length, squared_change=squared_change
        )

    return Solution(coordinates, choose(finite, lambda: x, lambda: torch.zeros_like(x)), finite, measure)
