"""The tutorial's semi-implicit back propagation against the optimizers of the project, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP, ProxBP
from sibp.tutorial import backprop, semi_implicit

METHODS = {
    "SIBP exact": (SIBP, "exact", {}),
    "SIBP cg:1": (SIBP, "cg:1", {"iterations": 1}),
    "SIBP cg:3": (SIBP, "cg:3", {"iterations": 3}),
    "SIBP cg:5": (SIBP, "cg:5", {"iterations": 5}),
    "ProxBP": (ProxBP, "exact", {"through_new": False}),
}


def as_model(layers):
    modules: list[nn.Module] = []
    for W, b in layers:
        linear = nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(W))
            linear.bias.copy_(torch.tensor(b))
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("eta", "lam"), [(0.3, 1.0), (3.0, 0.3)])
@pytest.mark.parametrize(("sizes", "B"), [((7, 6, 5, 4), 40), ((30, 20, 12, 4), 9), ((5, 3), 8)])
def test_three_steps_are_the_optimizers(name, eta, lam, sizes, B):
    """With more samples than inputs, and fewer, for which the optimizer uses other coordinates."""
    method, solver, arguments = METHODS[name]
    rng = np.random.default_rng(sum(sizes) + B)
    layers = [(W, 0.3 * rng.normal(size=b.shape)) for W, b in backprop.new_layers(sizes, rng)]
    model = as_model(layers)
    optimizer = method(model, lr=eta, prox_weight=lam, solver=solver, loss_average=False)
    start = np.concatenate([p.ravel() for layer in layers for p in layer])
    for _ in range(3):
        x, labels = rng.normal(size=(B, sizes[0])), rng.integers(sizes[-1], size=B)
        layers = semi_implicit.step(layers, x, labels, eta, lam, **arguments)
        optimizer.zero_grad()
        F.cross_entropy(model(torch.tensor(x)), torch.tensor(labels), reduction="sum").backward()
        optimizer.step()
    ours = np.concatenate([p.ravel() for layer in layers for p in layer])
    theirs = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    assert np.abs(ours - start).max() > 1e-2


def test_a_layer_of_dead_neurons_is_unchanged():
    layers = [(np.zeros((3, 2)), np.full(3, -1.0)), (np.ones((2, 3)), np.zeros(2))]
    (W, b), _ = semi_implicit.step(layers, np.ones((4, 2)), np.array([0, 1, 1, 1]), 1.0, 1.0, iterations=3)
    assert not W.any()
    assert (b == -1).all()


def test_a_network_of_zeros_is_unchanged_for_balanced_labels():
    """Page 8 says so: its gradient is zero, though it knows nothing."""
    layers = [(np.zeros((3, 2)), np.zeros(3)), (np.zeros((2, 3)), np.zeros(2))]
    for iterations in (None, 3):
        after = semi_implicit.step(layers, np.ones((4, 2)), np.array([0, 1, 1, 0]), 1.0, 1.0, iterations)
        assert not any(p.any() for layer in after for p in layer)
