"""The nonlinear subproblem's conjugate gradients written out for one neuron at a time, in numpy, on [A, 1] itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Elementwise = Callable[[np.ndarray], np.ndarray]


@dataclass
class Trace:
    """A log of events, for tests of single rules."""

    f: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    refused: int = 0
    ascents: int = 0
    restarts: int = 0


def as_numpy(function: Callable[[Tensor], Tensor]) -> tuple[Elementwise, Elementwise]:
    """An activation of torch and its derivative by autograd, on numpy arrays."""

    def value(z: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(z)).numpy()

    def slope(z: np.ndarray) -> np.ndarray:
        point = torch.from_numpy(z).requires_grad_()
        return torch.autograd.grad(function(point).sum(), point)[0].numpy()

    return value, slope


def reference_cg(
    P: np.ndarray, z: np.ndarray, t: np.ndarray, lam: float, s: Callable[[Tensor], Tensor], iterations: int
) -> tuple[np.ndarray, Trace]:
    """Decreases f(x) = ||s(z + P x) - t||^2 + lam ||x||^2 for one neuron, from x = 0.

    Polak-Ribiere, restarted by -g where beta is negative, the direction would not descend, or d and g cancel; a
    Gauss-Newton step along it, taken only if f falls; after a refused step the next is a quarter as long.
    """
    value, slope = as_numpy(s)

    def f(x: np.ndarray) -> float:
        return np.square(value(z + P @ x) - t).sum() + lam * x @ x

    x = np.zeros(P.shape[1])
    d = g_before = np.zeros_like(x)
    shrink, trace = 1.0, Trace(f=[f(x)])
    for _ in range(iterations):
        now = z + P @ x
        g = P.T @ ((value(now) - t) * slope(now)) + lam * x
        previous = g_before @ g_before
        beta = (g @ g - g @ g_before) / previous if previous > 0 else 0.0
        if beta < 0:
            trace.restarts += 1
            beta = 0.0
        if beta > 0 and g @ (beta * d - g) >= 0:
            trace.ascents += 1
            beta = 0.0
        left = beta * d - g
        if left @ left <= 1e-3 * (g @ g + beta**2 * d @ d):
            beta = 0.0
        d = beta * d - g
        curvature = np.square(slope(now) * (P @ d)).sum() + lam * d @ d
        step = shrink * -(g @ d) / curvature if curvature > 0 else 0.0
        if f(x + step * d) < trace.f[-1]:
            x, shrink = x + step * d, 1.0
            trace.steps.append(step)
        else:
            shrink /= 4
            trace.refused += 1
            trace.steps.append(0.0)
        trace.f.append(f(x))
        g_before = g
    return x, trace
