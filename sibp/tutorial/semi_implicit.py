"""Semi-implicit back propagation from scratch, for networks of linear layers with ReLU between them.

The notation is the paper's (Liu & Zhang 2020, arXiv 2002.03516): a layer has inputs A (B, n), pre-activations
Z = A W^T + b (B, m) and a target T (B, m); D (B, m) is the error signal on its output and E (B, m) that on Z; eta is
the step on the neurons and lam the proximal weight. Phi = [A, 1] has a column of ones for the bias, so that a
displacement V (n + 1, m) of weights and bias together adds Phi V to Z.
"""

import numpy as np

from sibp.tutorial.backprop import Array, log_softmax

Layer = tuple[Array, Array]
"""W (m, n) and b (m,)."""


def relu(Z: Array) -> Array:
    """max(x, 0), entry by entry."""
    return np.maximum(Z, 0)


def forward(layers: list[Layer], x: Array) -> tuple[list[Array], list[Array]]:
    """Each layer's input A (B, n) and pre-activation Z (B, m)."""
    A, Z = [x], []
    for W, b in layers:
        Z.append(A[-1] @ W.T + b)
        A.append(relu(Z[-1]))
    return A[:-1], Z


def solve_linear(Phi: Array, Z: Array, T: Array, lam: float) -> Array:
    """The displacement V (n + 1, m) that minimises ||Z + Phi V - T||^2 + lam ||V||^2."""
    return np.linalg.solve(Phi.T @ Phi + lam * np.eye(Phi.shape[1]), Phi.T @ (T - Z))


def solve_relu(Phi: Array, Z: Array, T: Array, lam: float, iterations: int) -> Array:
    """The displacement V (n + 1, m) after conjugate gradients on ||relu(Z + Phi V) - T||^2 + lam ||V||^2 from V = 0.

    Neurons (columns) are independent, so each has its own step length.
    """

    def objective(Z: Array, V: Array) -> Array:
        return dot(relu(Z) - T, relu(Z) - T) + lam * dot(V, V)

    V = P = G_before = np.zeros((Phi.shape[1], Z.shape[1]))
    f, shrink = objective(Z, V), np.ones(Z.shape[1])
    for _ in range(iterations):
        active = Z > 0
        G = Phi.T @ ((relu(Z) - T) * active) + lam * V  # half the gradient
        beta = np.maximum(ratio(dot(G, G - G_before), dot(G_before, G_before)), 0)
        beta = np.where(beta * dot(G, P) < dot(G, G), beta, 0)  # otherwise P would not be a descent direction
        P = beta * P - G  # search direction
        change = Phi @ P  # of Z, for a step of length 1
        curvature = dot(change * active, change) + lam * dot(P, P)
        t = shrink * ratio(-dot(G, P), curvature)
        f_there = objective(Z + t * change, V + t * P)
        better = f_there < f
        V = np.where(better, V + t * P, V)
        Z = np.where(better, Z + t * change, Z)
        f = np.where(better, f_there, f)
        shrink = np.where(better, 1, shrink / 4)
        G_before = G
    return V


def dot(X: Array, Y: Array) -> Array:
    """Inner products of columns, (m,): one per neuron."""
    return np.sum(X * Y, axis=0)


def ratio(x: Array, y: Array) -> Array:
    """The quotient x / y, and 0 where y is not positive."""
    return np.divide(x, y, out=np.zeros_like(x), where=y > 0)


def step(
    layers: list[Layer],
    x: Array,
    labels: Array,
    eta: float,
    lam: float,
    iterations: int | None = None,
    *,
    through_new: bool = True,
) -> list[Layer]:
    """One step on the summed cross-entropy: new weights, from the last layer to the first.

    Args:
        layers: the network.
        x: (B, n_0) inputs.
        labels: (B,) correct classes, integers.
        eta: step on the neurons.
        lam: proximal weight, > 0.
        iterations: of conjugate gradients with ReLU inside, as `SIBP(solver="cg:5")`; None solves
            the linear subproblem at every layer, as `SIBP(solver="exact")`.
        through_new: whether error signals go backward through the new weights; False, with the
            linear subproblem, is ProxBP (Frerix et al. 2018, arXiv 1706.04638).
    """
    A, Z = forward(layers, x)
    D = np.exp(log_softmax(Z[-1])) - np.eye(Z[-1].shape[1])[labels]
    last = len(layers) - 1
    new = list(layers)
    for i in range(last, -1, -1):
        W, b = layers[i]
        E = D if i == last else D * (Z[i] > 0)
        Phi = np.hstack([A[i], np.ones((len(x), 1))])
        if i == last or iterations is None:
            V = solve_linear(Phi, Z[i], Z[i] - eta * E, lam)
        else:
            V = solve_relu(Phi, Z[i], relu(Z[i]) - eta * D, lam, iterations)
        new[i] = W + V[:-1].T, b + V[-1]
        D = E @ (new[i][0] if through_new else W)
    return new
