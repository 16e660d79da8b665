"""The step of semi-implicit back propagation as published (Liu & Zhang 2020, arXiv 2002.03516), for comparing speed.

Its rules and results are those of `sibp.prox.solvers.paper`. But every value of the objective in the line search is
computed from the weights, f(W) = ||s(A W^T + b) - T||^2 + lam ||W - W_old||^2, with one matrix product each; the solver
"paper" computes one product per iteration, which makes it several times as fast.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp.prox.solvers.paper import ITERATIONS, POWERS, RHO, SIGMA


def minimise(
    f: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, relu: bool
) -> Tensor:
    """Five iterations of Fletcher-Reeves conjugate gradients with an Armijo line search; a NaN direction takes no step.

    Args:
        f: the objective.
        gradient: its gradient.
        x: starting point.
        g: gradient at x.
        relu: whether the rules of hidden layers apply.

    Returns:
        The point reached, in x's shape.
    """
    d = -g
    for _ in range(ITERATIONS):
        f0, gd = f(x).item(), (g * d).sum().item()
        m = _power(lambda m, x=x, d=d, f0=f0, gd=gd: f(x + RHO**m * d).item() < f0 + SIGMA * RHO**m * gd, f0, gd, relu)
        if m > 0:
            x = x + RHO**m * d
        g_old, g = g, gradient(x)
        d = -g + (g * g).sum() / (g_old * g_old).sum() * d
    return x


def _power(accepted: Callable[[int], bool], f0: float, gd: float, relu: bool) -> int:
    """The exponent of the step length, or -1 if none is accepted."""
    if not relu:
        return next((m for m in range(POWERS) if accepted(m)), -1)
    ratio = 0.01 * f0 / abs(SIGMA * gd) if gd else 1.0
    m0 = max(0, math.floor(math.log(ratio) / math.log(RHO))) if 0 < ratio < math.inf else 0
    return m0 if accepted(0) else next((m for m in range(m0 + 1, POWERS) if accepted(m)), -1)


def solve_layer(A: Tensor, T: Tensor, W: Tensor, b: Tensor, lam: float, relu: bool) -> tuple[Tensor, Tensor]:
    """New weights, then new biases of a layer.

    Args:
        A: (B, n) input.
        T: (B, m) target.
        W: (m, n) weights.
        b: (m,) biases.
        lam: proximal weight of both.
        relu: whether ReLU follows.

    Returns:
        W_new and b_new.
    """
    s = torch.relu if relu else (lambda Z: Z)

    def masked(Z: Tensor) -> Tensor:
        return (s(Z) - T) * (Z > 0) if relu else Z - T

    first = masked(A @ W.T + b) if relu else A @ W.T - T  # the output layer's first gradient lacks the constant
    W_new = minimise(
        lambda X: (s(A @ X.T + b) - T).square().sum() + lam * (X - W).square().sum(),
        lambda X: 2 * masked(A @ X.T + b).T @ A + 2 * lam * (X - W),
        W, 2 * first.T @ A, relu,
    )  # fmt: skip
    C = A @ W_new.T
    b_new = minimise(
        lambda x: (s(C + x) - T).square().sum() + lam * (x - b).square().sum(),
        lambda x: 2 * masked(C + x).sum(0) + 2 * lam * (x - b),
        b, 2 * (masked(C + b) if relu else b - T).sum(0), relu,
    )  # fmt: skip
    return W_new, b_new


@torch.no_grad()
def step(layers: Sequence[nn.Linear], x: Tensor, y: Tensor, eta: float, lam: float) -> None:
    """One training step on a batch, in place.

    Args:
        layers: of a net with ReLU between them.
        x: (B, n_0) inputs.
        y: (B,) labels.
        eta: step on the neurons.
        lam: proximal weight.
    """
    As = [x]
    for layer in layers[:-1]:
        As.append(layer(As[-1]).relu())
    Z = layers[-1](As[-1])
    E = Z.softmax(1) - F.one_hot(y, Z.shape[1])
    T, top = Z - eta * E, layers[-1]
    for layer, A in zip(reversed(layers), reversed(As), strict=True):
        W, b = solve_layer(A, T, layer.weight, layer.bias, lam, relu=layer is not top)
        layer.weight.copy_(W)
        layer.bias.copy_(b)
        D = E @ W
        T = A - eta * D
        E = D * (A > 0)
