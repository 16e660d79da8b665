"""Back propagation from scratch: a graph of nodes, each of which knows how to propagate a gradient to its parents.

A node's gradient is dL/dnode, in the shape of the node's own value (denominator layout), L being the one number at the
end of the graph.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray
VJP = Callable[[Array], tuple[Array, ...]]


class Node:
    """A value in the graph, and how to propagate a gradient from it.

    Attributes:
        value: an array.
        parents: the nodes it was computed from.
        vjp: vector-Jacobian product: takes dL/dvalue and returns dL/dparent.value for each parent.
        gradient: dL/dvalue, of the value's shape; zero until `backward` has run.
    """

    def __init__(self, value: Any, parents: tuple["Node", ...] = (), vjp: VJP | None = None) -> None:
        """A leaf if there are no parents."""
        self.value = np.asarray(value, dtype=float)
        self.parents = parents
        self.vjp = vjp
        self.gradient = np.zeros_like(self.value)


def add(x: Node, y: Node) -> Node:
    """The sum x + y; a row is added to every row of a matrix."""
    return Node(x.value + y.value, (x, y), lambda G: (fit(G, x), fit(G, y)))


def multiply(x: Node, y: Node) -> Node:
    """The product x * y, entry by entry."""
    z = x.value * y.value
    return Node(z, (x, y), lambda G: (fit(G * y.value, x), fit(G * x.value, y)))


def matmul(x: Node, y: Node) -> Node:
    """The matrix product x @ y, (B, n) times (n, m)."""
    return Node(x.value @ y.value, (x, y), lambda G: (G @ y.value.T, x.value.T @ G))


def transpose(x: Node) -> Node:
    """The transpose of a matrix."""
    return Node(x.value.T, (x,), lambda G: (G.T,))


def relu(x: Node) -> Node:
    """max(x, 0), entry by entry; its derivative at 0 is taken as 0."""
    return Node(np.maximum(x.value, 0), (x,), lambda G: (G * (x.value > 0),))


def tanh(x: Node) -> Node:
    """The hyperbolic tangent, entry by entry."""
    a = np.tanh(x.value)
    return Node(a, (x,), lambda G: (G * (1 - a**2),))


def softmax_cross_entropy(z: Node, labels: Array) -> Node:
    """The negative log-likelihood of the correct class, summed over the samples.

    Args:
        z: (B, classes) logits.
        labels: (B,) correct classes, integers.
    """
    log_Y_hat = log_softmax(z.value)
    Y = np.eye(log_Y_hat.shape[1])[labels]
    return Node(-np.sum(Y * log_Y_hat), (z,), lambda G: (G * (np.exp(log_Y_hat) - Y),))


def log_softmax(Z: Array) -> Array:
    """Log-probabilities of logits (B, classes)."""
    Z = Z - Z.max(axis=1, keepdims=True)  # leaves the result unchanged and keeps exp from overflowing
    return Z - np.log(np.exp(Z).sum(axis=1, keepdims=True))


def fit(G: Array, x: Node) -> Array:
    """Sums G over the axes along which x was repeated, so that it has x's shape."""
    G = G.sum(axis=tuple(range(G.ndim - x.value.ndim)))
    repeated = tuple(i for i, size in enumerate(x.value.shape) if size == 1)
    return G.sum(axis=repeated, keepdims=True)


def backward(loss: Node) -> None:
    """Computes the gradient of every node that the loss depends on.

    Args:
        loss: a node that holds one number.
    """
    order = parents_first(loss)
    for node in order:
        node.gradient = np.zeros_like(node.value)
    loss.gradient = np.ones_like(loss.value)
    for node in reversed(order):
        if node.vjp is not None:
            products = node.vjp(node.gradient)
            for parent, gradient in zip(node.parents, products, strict=True):
                parent.gradient = parent.gradient + gradient


def parents_first(node: Node) -> list[Node]:
    """The node and all its ancestors in topological order: parents first."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in order:
            for parent in node.parents:
                visit(parent)
            order[node] = None

    visit(node)
    return list(order)


def new_layers(sizes: Sequence[int], rng: np.random.Generator, gain: float = 2.0) -> list[tuple[Array, Array]]:
    """Random weights (m, n) and zero biases (m,) of a chain of layers; gain / n is the weights' variance.

    Args:
        sizes: layer widths, from input to output.
        rng: source of the random weights.
        gain: 2 preserves the variance through ReLU layers (He et al. 2015, arXiv 1502.01852), 1 through tanh layers.
    """
    return [(rng.normal(0, np.sqrt(gain / n), (m, n)), np.zeros(m)) for n, m in pairwise(sizes)]


def network(x: Array, layers: list[tuple[Node, Node]], activation: Callable[[Node], Node] = relu) -> Node:
    """The logits of a chain of layers with an activation between them: (B, n_0) to (B, n_L)."""
    a = Node(x)
    for i, (W, b) in enumerate(layers):
        a = activation(a) if i > 0 else a
        a = add(matmul(a, transpose(W)), b)
    return a


def gradients(
    layers: list[tuple[Array, Array]], x: Array, labels: Array, activation: Callable[[Node], Node] = relu
) -> tuple[float, list[tuple[Array, Array]]]:
    """The summed loss of a network, and its gradient for every weight and bias."""
    nodes = [(Node(W), Node(b)) for W, b in layers]
    loss = softmax_cross_entropy(network(x, nodes, activation), labels)
    backward(loss)
    return float(loss.value), [(W.gradient, b.gradient) for W, b in nodes]
