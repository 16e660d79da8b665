"""The tutorial's back propagation against torch's autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sibp.tutorial import backprop
from sibp.tutorial.backprop import Node, add, backward, matmul, multiply, relu, softmax_cross_entropy, tanh, transpose

RNG = np.random.default_rng(0)


def assert_gradients_equal(ours, theirs, *values, labels):
    """Builds both graphs on the same leaves, ends them in a cross-entropy, and compares every leaf's gradient."""
    nodes = [Node(value) for value in values]
    leaves = [torch.tensor(value, requires_grad=True) for value in values]
    loss = softmax_cross_entropy(ours(*nodes), labels)
    expected = F.cross_entropy(theirs(*leaves), torch.tensor(labels), reduction="sum")
    backward(loss)
    expected.backward()
    np.testing.assert_allclose(loss.value, expected.item(), rtol=1e-12)
    for node, leaf in zip(nodes, leaves, strict=True):
        assert leaf.grad is not None
        assert node.gradient.shape == node.value.shape
        np.testing.assert_allclose(node.gradient, leaf.grad.numpy(), rtol=0, atol=1e-10)


# Each on matrices (3, 4); the second may be a row or a column, which is broadcast.
OPERATIONS = {
    "add": (add, torch.add),
    "multiply": (multiply, torch.mul),
    "used twice": (lambda x, y: multiply(add(x, y), x), lambda x, y: (x + y) * x),
    "twice through the same node": (
        lambda x, y: multiply(relu(x), add(y, relu(x))),
        lambda x, y: F.relu(x) * (y + F.relu(x)),
    ),
    "squared": (lambda x, y: add(multiply(x, x), y), lambda x, y: x * x + y),
    "tanh": (lambda x, y: tanh(multiply(x, y)), lambda x, y: (x * y).tanh()),
}


@pytest.mark.parametrize("shape", [(3, 4), (4,), (1, 4), (3, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, shape):
    ours, theirs = OPERATIONS[name]
    x, y = RNG.normal(size=(3, 4)), RNG.normal(size=shape)
    assert_gradients_equal(ours, theirs, x, y, labels=np.array([0, 3, 1]))


def test_products_and_transposes():
    x, y = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 5))
    labels = np.array([4, 0, 2])
    assert_gradients_equal(lambda x, y: matmul(transpose(x), y), lambda x, y: x.T @ y, x, y, labels=labels)


def test_at_the_kink_the_slope_is_zero():
    x = np.array([[-1.0, 0.0, 2.0]])
    assert_gradients_equal(relu, torch.relu, x, labels=np.array([1]))


def test_large_scores_do_not_overflow():
    x = np.array([[1000.0, 0.0], [-1000.0, 3.0]])
    assert_gradients_equal(lambda x: x, lambda x: x * 1, x, labels=np.array([1, 1]))


@pytest.mark.parametrize(("ours", "theirs"), [(relu, torch.relu), (tanh, torch.tanh)])
@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), (6, 9, 8, 7, 4)])
def test_networks(sizes, ours, theirs):
    layers = [(W, RNG.normal(size=b.shape)) for W, b in backprop.new_layers(sizes, RNG)]
    x, labels = RNG.normal(size=(11, sizes[0])), RNG.integers(sizes[-1], size=11)
    loss, gradients = backprop.gradients(layers, x, labels, ours)
    leaves = [torch.tensor(p, requires_grad=True) for layer in layers for p in layer]
    a = torch.tensor(x)
    for i in range(0, len(leaves), 2):
        a = F.linear(theirs(a) if i else a, leaves[i], leaves[i + 1])
    expected = F.cross_entropy(a, torch.tensor(labels), reduction="sum")
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    flat = [gradient for layer in gradients for gradient in layer]
    for gradient, leaf in zip(flat, leaves, strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=0, atol=1e-10)


def test_a_second_backward_gives_the_same_gradients():
    x = Node(RNG.normal(size=(3, 4)))
    loss = softmax_cross_entropy(multiply(x, x), np.array([0, 1, 2]))
    backward(loss)
    once = x.gradient
    backward(loss)
    np.testing.assert_array_equal(x.gradient, once)


def test_new_layers_have_the_documented_variance():
    (W, b), _ = backprop.new_layers((400, 300, 2), np.random.default_rng(1), gain=3.0)
    assert W.shape == (300, 400)
    assert not b.any()
    assert W.var() == pytest.approx(3.0 / 400, rel=0.02)
