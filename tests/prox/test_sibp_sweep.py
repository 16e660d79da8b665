"""SIBP's whole step against a sweep written by hand."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mlp_sweeps import (
    assert_layers_close,
    batch,
    cg_solve,
    displacement,
    layers,
    linear_solve,
    mlp,
    relu_solve,
    step,
    sweep,
)
from torch import nn

from sibp import SIBP

pytestmark = pytest.mark.filterwarnings("ignore:layer .* Lower lr:RuntimeWarning")  # intentionally long steps

# Batches smaller and larger than the layers, so that both coordinates serve; with and without bias.
NETS = {
    "B < n": ((12, 9, 8, 4), 5, True),
    "B > n": ((5, 6, 4, 3), 20, True),
    "mixed, no bias": ((14, 3, 9, 3), 7, False),
    "one layer": ((6, 4), 8, True),
}
STEPS = 3


@pytest.mark.parametrize(("eta", "lam"), [(0.1, 1.0), (1.0, 0.1), (0.5, 10.0)])
@pytest.mark.parametrize("net", NETS)
def test_exact_is_the_linearised_sweep(net, eta, lam):
    sizes, B, bias = NETS[net]
    model = mlp(*sizes, bias=bias)
    optimizer = SIBP(model, lr=eta, prox_weight=lam, solver="exact")
    expected = layers(model)
    for k in range(STEPS):
        x, y = batch(B, sizes[0], sizes[-1], seed=k)
        step(model, optimizer, x, y)
        solve = linear_solve(eta, lam)
        expected = sweep(expected, x, y, solve, solve, through_new=True)
        assert_layers_close(layers(model), expected)


@pytest.mark.parametrize(
    ("activation", "s"),
    [
        (nn.ReLU, torch.relu),
        (nn.Tanh, torch.tanh),
        (nn.SiLU, F.silu),
        (nn.GELU, F.gelu),
        (nn.ELU, F.elu),
        (nn.Softplus, F.softplus),
        (nn.Mish, F.mish),
        (nn.Hardswish, F.hardswish),
        (nn.ReLU6, F.relu6),
        (partial(nn.PReLU, dtype=torch.float64), lambda z: F.leaky_relu(z, 0.25)),
    ],
)
@pytest.mark.parametrize(("eta", "lam", "iterations"), [(0.3, 1.0, 1), (0.3, 1.0, 5), (4.0, 0.2, 3)])
@pytest.mark.parametrize("net", NETS)
def test_cg_is_the_sweep_with_the_activation_inside(net, eta, lam, iterations, activation, s):
    sizes, B, bias = NETS[net]
    model = mlp(*sizes, bias=bias, activation=activation)
    optimizer = SIBP(model, lr=eta, prox_weight=lam, solver=f"cg:{iterations}")
    expected = layers(model)
    x, y = batch(B, sizes[0], sizes[-1])
    step(model, optimizer, x, y)
    expected = sweep(expected, x, y, cg_solve(eta, lam, s, iterations), linear_solve(eta, lam), s, through_new=True)
    assert_layers_close(layers(model), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("net", NETS)
def test_converged_cg_is_the_minimum_of_every_layer(net):
    """Small enough steps that the minimum lies in the cell where active samples stay active."""
    sizes, B, bias = NETS[net]
    model = mlp(*sizes, bias=bias)
    before = layers(model)
    eta, lam = 0.02, 1.0
    x, y = batch(B, sizes[0], sizes[-1])
    step(model, SIBP(model, lr=eta, prox_weight=lam, solver="cg:100"), x, y)
    expected = sweep(before, x, y, relu_solve(eta, lam), linear_solve(eta, lam), through_new=True)
    assert_layers_close(layers(model), expected, rtol=0, atol=1e-9)
    assert max(np.abs(change).max() for change in displacement(before, expected)) > 1e-3


def test_unmasked_error_signals_make_the_relu_step_differ_from_the_linearised_one():
    """A large step makes inactive samples matter: the target of a unit at zero may be above zero."""
    moved = []
    for solver in ("exact", "cg:50"):
        model = mlp(5, 6, 4, 3)
        before = layers(model)
        step(model, SIBP(model, lr=3.0, prox_weight=0.1, solver=solver), *batch(20, 5, 3))
        moved.append(displacement(before, layers(model))[0])
    assert np.abs(moved[0] - moved[1]).max() > 0.1 * np.abs(moved[0]).max()


def test_metrics_of_the_layers_are_those_of_the_sweep():
    model = mlp(5, 6, 4, 3)
    before = layers(model)
    optimizer = SIBP(model, lr=0.5, prox_weight=0.5, solver="exact")
    x, y = batch(20, 5, 3)
    step(model, optimizer, x, y)
    changes = displacement(before, layers(model))
    stats = optimizer.solver_stats()
    A, Zs = x.numpy(), []
    for W, b in before:
        Zs.append(A @ W.T + b)
        A = np.maximum(Zs[-1], 0)
    reached = [np.ones_like(Zs[-1], dtype=bool)]  # the output, then active units below a reached unit
    for Z in Zs[-2::-1]:
        reached.insert(0, (Z > 0) & reached[0].any(1, keepdims=True))
    assert list(stats) == ["4", "2", "0"]  # the order of the sweep
    for i, (W, b) in enumerate(layers(model)):
        layer = stats[str(2 * i)]
        change = np.hypot(np.linalg.norm(changes[2 * i]), np.linalg.norm(changes[2 * i + 1]))
        assert b is not None
        # `relative_change` refers to the weights when it is read.
        assert layer["relative_change"] == pytest.approx(change / np.hypot(np.linalg.norm(W), np.linalg.norm(b)))
        assert layer["active_fraction"] == pytest.approx(reached[i].mean())
        assert layer["status"] == 0
        assert 0 < layer["decrease"] < 1
