"""Where many iterations end: a minimum of the subproblem, as scipy, enumeration and derivatives find it too."""

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from layer_problems import ACTIVATIONS, features_matrix, moved, randn, ridge
from reference_cg import as_numpy
from scipy.optimize import approx_fprime, minimize

from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Span
from sibp.prox.solvers.nonlinear import solve_nonlinear

SMOOTH = ["tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus", "mish"]
MANY = 1000


@dataclass
class Neuron:
    """f(x) = ||s(z + P x) - t||^2 + lam ||x||^2, and the solver's final x."""

    P: np.ndarray
    z: np.ndarray
    t: np.ndarray
    lam: float
    name: str
    x: np.ndarray

    def f(self, x: np.ndarray) -> float:
        value, _ = as_numpy(ACTIVATIONS[self.name][1])
        return np.square(value(self.z + self.P @ x) - self.t).sum() + self.lam * x @ x

    def gradient(self, x: np.ndarray) -> np.ndarray:
        point = torch.from_numpy(x).requires_grad_()
        a = ACTIVATIONS[self.name][1](torch.from_numpy(self.z) + torch.from_numpy(self.P) @ point)
        f = (a - torch.from_numpy(self.t)).square().sum() + self.lam * point.square().sum()
        return torch.autograd.grad(f, point)[0].numpy()


@cache
def solved_neurons(name: str, lam: float = 0.3, N: int = 6, n: int = 4) -> list[Neuron]:
    """Twenty random neurons after many iterations, solved side by side as groups.

    ReLU's targets are not negative: a negative one can put the minimum on a kink, where the gradient jumps and the
    iterations of a gradient method may end nearby.
    """
    s, torch_s = ACTIVATIONS[name]
    features = DenseFeatures(randn(20, N, n, seed=1))
    Z = randn(20, N, 1, seed=2)
    T = torch_s(Z) - randn(20, N, 1, seed=3)
    T = T.abs() if name == "relu" else T
    coordinates = Span(features)
    X = moved(solve_nonlinear(coordinates, Z, T, lam, s, MANY))[..., 0]
    P, z, t = features_matrix(features), Z[..., 0].numpy(), T[..., 0].numpy()
    return [Neuron(P[i], z[i], t[i], lam, name, X[i]) for i in range(20)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*SMOOTH, "relu", "identity"])
def test_the_gradient_vanishes(name, seed):
    neuron = solved_neurons(name)[seed]
    np.testing.assert_allclose(neuron.gradient(neuron.x), 0, atol=1e-6)
    differences = approx_fprime(neuron.x, neuron.f, 1e-6) / 2 - approx_fprime(neuron.x, neuron.f, -1e-6) / -2
    np.testing.assert_allclose(differences, 0, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*SMOOTH, "relu"])
def test_scipy_finds_nothing_lower_nearby(name, seed):
    neuron = solved_neurons(name)[seed]
    reached = neuron.f(neuron.x)
    for nudge in range(3):
        start = neuron.x + 1e-3 * randn(len(neuron.x), seed=nudge).numpy()
        for method in ("BFGS", "L-BFGS-B", "Nelder-Mead"):
            gradient = None if method == "Nelder-Mead" else neuron.gradient
            assert reached <= minimize(neuron.f, start, jac=gradient, method=method).fun + 1e-9


@pytest.mark.parametrize("name", [*SMOOTH, "relu"])
def test_scipy_from_the_same_start_finds_the_same_minimum(name):
    """Smooth activations: always. ReLU: whenever scipy ends in the same cell of active samples."""
    compared = 0
    for neuron in solved_neurons(name, lam=1.0)[:8]:
        found = minimize(neuron.f, 0 * neuron.x, jac=neuron.gradient, method="L-BFGS-B", options={"ftol": 1e-15})
        cells = [neuron.z + neuron.P @ x > 0 for x in (found.x, neuron.x)]
        if name != "relu" or np.array_equal(*cells):
            compared += 1
            np.testing.assert_allclose(neuron.x, found.x, atol=1e-4)
            assert neuron.f(neuron.x) <= found.fun + 1e-9
    assert compared >= 4


def minima(neuron: Neuron) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(f, active samples, x) of every local minimum of a ReLU neuron with targets >= 0, by trying all patterns.

    On one pattern of active samples f is a ridge regression over them plus a constant; its minimiser counts if it
    has that pattern. With targets >= 0 no minimum lies on a kink: f rises faster on the inactive side.
    """
    found = []
    for pattern in itertools.product([False, True], repeat=len(neuron.z)):
        active = np.array(pattern)
        residual = (neuron.z - neuron.t)[active][:, None]
        x = ridge(neuron.P[active], residual, neuron.lam)[:, 0] if active.any() else np.zeros(neuron.P.shape[1])
        if np.array_equal(neuron.z + neuron.P @ x > 0, active):
            found.append((neuron.f(x), active, x))
    return sorted(found, key=lambda minimum: minimum[0])


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_enumerating_the_active_samples_finds_the_minimum_too(lam):
    started_right = 0
    for neuron in solved_neurons("relu", lam):
        every = minima(neuron)
        active = neuron.z + neuron.P @ neuron.x > 0
        own = [x for _, pattern, x in every if np.array_equal(pattern, active)]
        assert len(own) == 1
        np.testing.assert_allclose(neuron.x, own[0], atol=1e-7)
        lowest, pattern, _ = every[0]
        assert neuron.f(neuron.x) >= lowest - 1e-10
        if np.array_equal(pattern, neuron.z > 0):
            started_right += 1
            assert neuron.f(neuron.x) == pytest.approx(lowest, rel=1e-10)
    assert started_right >= 1
