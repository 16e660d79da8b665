"""Whole steps on multilayer perceptrons written out by hand in numpy, from the formulas of the methods."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from layer_problems import randn, ridge
from reference_cg import as_numpy, reference_cg
from torch import Tensor, nn

Layer = tuple[np.ndarray, np.ndarray | None]  # W (m, n), b (m,) or None
Solve = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(P, Z, D, D_z) of a layer -> [dW, db]'."""


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True, seed: int = 0) -> nn.Sequential:
    """Linear layers with activations between them, float64."""
    modules: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        linear = nn.Linear(n, m, bias=bias, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(randn(m, n, seed=100 * seed + i) / n**0.5)
            if bias:
                linear.bias.copy_(0.3 * randn(m, seed=100 * seed + i + 50))
        modules += [linear, activation()]
    return nn.Sequential(*modules[:-1])


def layers(model: nn.Module) -> list[Layer]:
    """Copies of the weights and biases of a model's linear layers."""
    return [
        (m.weight.detach().numpy().copy(), None if m.bias is None else m.bias.detach().numpy().copy())
        for m in model.modules()
        if isinstance(m, nn.Linear)
    ]


def batch(B: int, n: int, classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    return randn(B, n, seed=seed), torch.arange(B) % classes


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, reduction: str = "mean") -> None:
    """One training step on the cross-entropy."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y, reduction=reduction).backward()
    optimizer.step()


def sweep(
    before: list[Layer],
    x: Tensor,
    y: Tensor,
    solve_hidden: Solve,
    solve_output: Solve,
    s: Callable[[Tensor], Tensor] = torch.relu,
    *,
    through_new: bool,
) -> list[Layer]:
    """One step on the summed cross-entropy, from the last layer to the first.

    Args:
        before: the layers.
        x: (B, n) inputs.
        y: (B,) labels.
        solve_hidden: displacement of a hidden layer, from the difference on its activation and on its pre-activation.
        solve_output: displacement of the last layer.
        s: activation between the layers.
        through_new: whether differences go back through the new weights (SIBP) or the old ones (ProxBP).

    Returns:
        The layers after the step.
    """
    value, slope = as_numpy(s)
    A, Zs = [x.numpy()], []
    for W, b in before:
        Zs.append(A[-1] @ W.T + (0 if b is None else b))
        A.append(value(Zs[-1]))
    logits = Zs[-1] - Zs[-1].max(1, keepdims=True)
    D = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(Zs[-1].shape[1])[y.numpy()]
    after: list[Layer] = []
    top = len(before) - 1
    for i in range(top, -1, -1):
        W, b = before[i]
        D_z = D if i == top else D * slope(Zs[i])
        P = A[i] if b is None else np.hstack([A[i], np.ones((len(A[i]), 1))])
        X = (solve_output if i == top else solve_hidden)(P, Zs[i], D, D_z)
        n = W.shape[1]
        after.append((W + X[:n].T, None if b is None else b + X[n]))
        D = D_z @ (after[-1][0] if through_new else W)
    return after[::-1]


def linear_solve(eta: float, lam: float) -> Solve:
    """The linear subproblem: ||Z + P X - (Z - eta D_z)||^2 + lam ||X||^2."""
    return lambda P, Z, D, D_z: ridge(P, eta * D_z, lam)


def gradient_solve(eta: float, lam: float) -> Solve:
    """One gradient step of length 1/lam on the linear subproblem (without its factor 2)."""
    return lambda P, Z, D, D_z: -(eta / lam) * P.T @ D_z


def cg_solve(eta: float, lam: float, s: Callable[[Tensor], Tensor], iterations: int) -> Solve:
    """Iterations on ||s(Z + P X) - T||^2 + lam ||X||^2 with T = s(Z) - eta D, neuron by neuron."""
    value, _ = as_numpy(s)

    def solve(P: np.ndarray, Z: np.ndarray, D: np.ndarray, D_z: np.ndarray) -> np.ndarray:
        T = value(Z) - eta * D
        columns = [reference_cg(P, Z[:, j].copy(), T[:, j], lam, s, iterations)[0] for j in range(Z.shape[1])]
        return np.stack(columns, 1)

    return solve


def relu_solve(eta: float, lam: float) -> Solve:
    """The same for ReLU to convergence: ridge regression on the active samples until the active set is stable."""

    def solve_neuron(P: np.ndarray, z: np.ndarray, t: np.ndarray) -> np.ndarray:
        active = z > 0
        for _ in range(50):
            x = ridge(P[active], (z - t)[active][:, None], lam)[:, 0] if active.any() else np.zeros(P.shape[1])
            if np.array_equal(z + P @ x > 0, active):
                return x
            active = z + P @ x > 0
        raise AssertionError("the active samples did not settle")

    def solve(P: np.ndarray, Z: np.ndarray, D: np.ndarray, D_z: np.ndarray) -> np.ndarray:
        T = np.maximum(Z, 0) - eta * D
        return np.stack([solve_neuron(P, Z[:, j], T[:, j]) for j in range(Z.shape[1])], 1)

    return solve


def assert_layers_close(found: list[Layer], expected: list[Layer], rtol: float = 1e-10, atol: float = 1e-10) -> None:
    """Compares all weights and biases."""
    for (W, b), (W_expected, b_expected) in zip(found, expected, strict=True):
        np.testing.assert_allclose(W, W_expected, rtol=rtol, atol=atol)
        assert (b is None) == (b_expected is None)
        if b is not None and b_expected is not None:
            np.testing.assert_allclose(b, b_expected, rtol=rtol, atol=atol)


def displacement(before: list[Layer], after: list[Layer]) -> list[np.ndarray]:
    """The changes, weights and biases in turn."""
    pairs = [pair for old, new in zip(before, after, strict=True) for pair in zip(old, new, strict=True)]
    return [q - p for p, q in pairs if p is not None and q is not None]
