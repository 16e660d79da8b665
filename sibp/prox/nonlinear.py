"""The nonlinear subproblem, by a few rounds of conjugate gradients.

    min  ||s(Phi [W', b']') - T||^2 + lam (||W' - W||^2 + ||b' - b||^2)        (paper, section 3; DESIGN section 2)

The objective is a sum over the layer's neurons (columns), each with its own W row, so every neuron gets its own step
length and its own conjugacy coefficient, while the products with the Gram matrix serve all neurons at once.
"""

import torch
from torch import Tensor

from sibp.prox import fused
from sibp.prox.activations import Activation
from sibp.prox.coordinates import Coordinates
from sibp.prox.numbers import choose, is_finite, number
from sibp.prox.status import Solution, Stats, Status

# A neuron whose step was refused tries this fraction of the model's step length in its next round.
_SHRINK = 0.25
# Units in the last place by which a residual's rounding is overestimated.
_ROUNDING = 4.0


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the denominator is not positive (a dead or finished neuron)."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def solve_nonlinear(coordinates: Coordinates, Z: Tensor, T: Tensor, lam: float, s: Activation, rounds: int) -> Solution:
    """Decreases f(x) = ||s(Z + image(x)) - T||^2 + lam <x, x>, starting from x = 0.

    Each round takes one Polak-Ribiere direction (never negative, and replaced by the negative gradient where it is not
    a direction of descent) and one Gauss-Newton step length along it, and accepts it neuron by neuron only if it
    decreases f. A refused neuron starts afresh with a shorter step. For s = identity this is the linear conjugate
    gradient method. Few rounds are a choice, not only a saving: stopping early regularises.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m) pre-activations at the layer's present weights.
        T: (..., N, m) target of s(Z).
        lam: proximal weight, > 0.
        s: the layer's activation.
        rounds: number of rounds, >= 1.

    Returns:
        x in the given coordinates, with status and figures; f(x) <= f(0) neuron by neuron.
    """
    if fused.usable(Z, s) and not coordinates.features.sharing.partial:
        taken = fused.rounds(coordinates, Z, T, lam, s, rounds, _SHRINK, _ROUNDING)
    else:
        taken = _rounds(coordinates, Z, T, lam, s, rounds)
    return _solution(taken, rounds)


def _rounds(coordinates: Coordinates, Z: Tensor, T: Tensor, lam: float, s: Activation, rounds: int) -> fused.Rounds:
    """The rounds themselves, for any activation, coordinates and device."""
    total = coordinates.features.sharing.total
    x = Z.new_zeros(*Z.shape[:-2], coordinates.size, Z.shape[-1])
    image_x = torch.zeros_like(Z)
    D, image_D, G_old = x, image_x, x
    f = total((s.value(Z) - T).square().sum(-2))
    start = f.sum()
    gg_old = torch.zeros_like(f)
    shrink = torch.ones_like(f)
    # s(Z) - T rounds by this much, squared: a gradient no larger says nothing, and the neuron is done.
    negligible = (_ROUNDING * torch.finfo(Z.dtype).eps) ** 2 * coordinates.amplification * total(T.square().sum(-2))
    step_sum, slope_sum = torch.zeros_like(start), torch.zeros_like(start)
    for _ in range(rounds):
        slope = s.slope(Z)
        # Half of f's gradient, as coefficients: pull((s(Z) - T) s'(Z)) + lam x.
        G = coordinates.pull((s.value(Z) - T) * slope) + lam * x
        image_G = coordinates.image(G)
        moving = G.square().sum(-2) > negligible
        gg = coordinates.squared_norm(G, image_G) * moving  # a product: what is not finite stays so
        beta = _ratio(gg - coordinates.inner(G_old, image_G, G, image_G), gg_old).clamp_(min=0)
        beta = _descent_only(coordinates, beta, G, image_G, D, image_D)
        D, image_D = beta * D - G, beta * image_D - image_G
        gd = -coordinates.inner(G, image_G, D, image_D)
        dd = coordinates.inner(D, image_D, D, image_D)
        t = shrink * _ratio(gd, total((slope * image_D).square().sum(-2)) + lam * dd) * (gg > 0)
        step = t.unsqueeze(-2)
        Z_try, x_try, image_try = Z + step * image_D, x + step * D, image_x + step * image_D
        f_try = total((s.value(Z_try) - T).square().sum(-2))
        f_try = f_try + lam * coordinates.inner(x_try, image_try, x_try, image_try)
        accept = f_try < f
        keep = accept.unsqueeze(-2)
        Z, x, image_x = (
            torch.where(keep, Z_try, Z),
            torch.where(keep, x_try, x),
            torch.where(keep, image_try, image_x),
        )
        f = torch.where(accept, f_try, f)
        shrink = torch.where(accept, 1.0, shrink * _SHRINK)
        step_sum += torch.where(accept, t, 0.0).mean()
        slope_sum += gg.sum()
        G_old, gg_old = G, gg
    squared_change = coordinates.inner(x, image_x, x, image_x).sum()
    return fused.Rounds(x, squared_change, start, f.sum(), slope_sum, step_sum / rounds)


def _descent_only(
    coordinates: Coordinates, beta: Tensor, G: Tensor, image_G: Tensor, D: Tensor, image_D: Tensor
) -> Tensor:
    """beta, but 0 for neurons where -G + beta D would not descend: <G, -G + beta D> >= 0."""
    ascends = beta * coordinates.inner(G, image_G, D, image_D) >= coordinates.inner(G, image_G, G, image_G)
    return torch.where(ascends, 0.0, beta).unsqueeze(-2)


def _solution(taken: fused.Rounds, rounds: int) -> Solution:
    """Checks what came out and words it as a `Solution`."""
    x, *figures = taken
    squared_change, start, end, gradient, step_length = map(number, figures)
    finite = is_finite(start + end + squared_change + gradient)

    def measure() -> Stats:
        stalled = (end >= start) & (gradient > 0)
        status = choose(stalled, lambda: Status.STALLED, lambda: Status.SOLVED)
        return Stats.of(
            status, finite, start, end, rounds=rounds, step_length=step_length, squared_change=squared_change
        )

    return Solution(choose(finite, lambda: x, lambda: torch.zeros_like(x)), finite, measure)
