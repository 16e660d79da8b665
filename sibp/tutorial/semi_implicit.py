"""Semi-implicit back propagation from scratch, for networks of linear layers with ReLU between them.

The notation is the paper's (Liu & Zhang 2020, arXiv 2002.03516): a layer has inputs A (B, n), pre-activations
Z = A W^T + b (B, m) and a target T (B, m); D (B, m) is the error signal on its output and E (B, m) that on Z; eta is
the step on the neurons and lam the proximal weight. P = [A, 1] has a column of ones for the bias, so that a
displacement X (n + 1, m) of weights and bias together adds P X to Z.
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


def solve_linear(P: Array, Z: Array, T: Array, lam: float) -> Array:
    """The displacement X that minimises ||Z + P X - T||^2 + lam ||X||^2."""
    return np.linalg.solve(P.T @ P + lam * np.eye(P.shape[1]), P.T @ (T - Z))


def solve_relu(P: Array, Z: Array, T: Array, lam: float, iterations: int) -> Array:
    """Decreases ||relu(Z + P X) - T||^2 + lam ||X||^2 by conjugate gradients from X = 0.

    Neurons (columns) are independent, so each has its own step length.
    """

    def objective(Z: Array, X: Array) -> Array:
        return dot(relu(Z) - T, relu(Z) - T) + lam * dot(X, X)

    X = S = G_before = np.zeros((P.shape[1], Z.shape[1]))
    f, shrink = objective(Z, X), np.ones(Z.shape[1])
    for _ in range(iterations):
        active = Z > 0
        G = P.T @ ((relu(Z) - T) * active) + lam * X  # half the gradient
        beta = np.maximum(ratio(dot(G, G - G_before), dot(G_before, G_before)), 0)
        beta = np.where(beta * dot(G, S) < dot(G, G), beta, 0)  # otherwise S would not be a descent direction
        S = beta * S - G  # search direction
        change = P @ S  # of Z, for a step of length 1
        curvature = dot(change * active, change) + lam * dot(S, S)
        t = shrink * ratio(-dot(G, S), curvature)
        f_there = objective(Z + t * change, X + t * S)
        better = f_there < f
        X = np.where(better, X + t * S, X)
        Z = np.where(better, Z + t * change, Z)
        f = np.where(better, f_there, f)
        shrink = np.where(better, 1, shrink / 4)
        G_before = G
    return X


def dot(X: Array, Y: Array) -> Array:
    """Inner products of columns, one per neuron."""
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
        P = np.hstack([A[i], np.ones((len(x), 1))])
        if i == last or iterations is None:
            X = solve_linear(P, Z[i], Z[i] - eta * E, lam)
        else:
            X = solve_relu(P, Z[i], relu(Z[i]) - eta * D, lam, iterations)
        new[i] = W + X[:-1].T, b + X[-1]
        D = E @ (new[i][0] if through_new else W)
    return new
