"""A step is zero exactly where the gradient is."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_problems import randn
from mlp_sweeps import batch, displacement, layers, mlp, step
from torch import nn

from sibp import SIBP, ProxBP

METHODS = {
    "SIBP cg": (SIBP, "cg:5"),
    "SIBP exact": (SIBP, "exact"),
    "SIBP paper": (SIBP, "paper"),
    "ProxBP exact": (ProxBP, "exact"),
    "ProxBP cg": (ProxBP, "cg:5"),
    "ProxBP gradient": (ProxBP, "gradient"),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("bias", [True, False])
def test_labels_equal_to_the_predictions_change_nothing(kind, bias):
    method, solver = METHODS[kind]
    model = mlp(6, 7, 5, 4, bias=bias)
    before = layers(model)
    x = randn(9, 6)
    with torch.no_grad():
        soft = model(x).softmax(1)
    step(model, method(model, lr=1.0, prox_weight=0.1, solver=solver), x, soft)
    assert max(np.abs(change).max() for change in displacement(before, layers(model))) < 1e-10


@pytest.mark.parametrize("kind", METHODS)
def test_other_labels_change_every_layer(kind):
    method, solver = METHODS[kind]
    model = mlp(6, 7, 5, 4)
    before = layers(model)
    step(model, method(model, lr=0.1, prox_weight=1.0, solver=solver), *batch(9, 6, 4))
    weights = displacement(before, layers(model))[::2]
    assert all(np.abs(change).max() > 1e-6 for change in weights)


# Sizes, batch, activation, eta, and whether the first layer alone moves. With few samples the labels are met and the
# differences vanish; with many they stay, and only their products with the inputs do. (With ReLU the loss's own minima
# may lie on a kink, where no gradient vanishes.)
RUNS = {
    "labels met, tanh": ((4, 8, 3), 4, nn.Tanh, 2.0, False),
    "labels met, ReLU": ((4, 8, 3), 4, nn.ReLU, 1.0, False),
    "labels not met, one layer": ((3, 3), 12, nn.ReLU, 2.0, False),
    "labels not met, hidden layer": ((2, 2, 3), 12, nn.Tanh, 3.0, True),
}


@pytest.mark.parametrize("kind", ["SIBP cg", "SIBP exact", "ProxBP exact"])
@pytest.mark.parametrize("run", RUNS)
def test_the_gradient_is_zero_at_a_fixed_point(run, kind):
    """Full batches with soft labels, so that the optimum is finite, until the step is less than 1e-9."""
    sizes, B, activation, eta, first_only = RUNS[run]
    method, solver = METHODS[kind]
    model = mlp(*sizes, activation=activation, seed=1)
    moving = list(model[0].parameters() if first_only else model.parameters())
    optimizer = method(model, lr=eta, prox_weight=1.0, solver=solver, params=moving)
    x, y = randn(B, sizes[0]), (0.5 * randn(B, sizes[-1], seed=5)).softmax(1)
    for _ in range(900):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if norm(moving) < 1e-9:
            break
        optimizer.step()
    assert norm(moving) < 1e-9
    with optimizer.paused():
        model.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()
    assert norm(moving) < 1e-6


def norm(parameters: list[nn.Parameter]) -> float:
    """Of all gradients together."""
    return math.sqrt(sum(p.grad.square().sum().item() for p in parameters if p.grad is not None))
