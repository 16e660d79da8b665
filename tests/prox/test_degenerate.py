"""Batches of one or none, dead layers, zero inputs, NaN: weights stay finite, statuses honest."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_problems import randn
from mlp_sweeps import assert_layers_close, batch, cg_solve, displacement, layers, linear_solve, mlp, step, sweep
from torch import nn

from sibp import SIBP, ProxBP
from sibp.prox.status import Status

pytestmark = pytest.mark.filterwarnings("ignore:layer .* Lower lr:RuntimeWarning")  # steps that must fail

METHODS = {
    "SIBP cg": (SIBP, "cg:5"),
    "SIBP exact": (SIBP, "exact"),
    "SIBP paper": (SIBP, "paper"),
    "ProxBP exact": (ProxBP, "exact"),
    "ProxBP cg": (ProxBP, "cg:3"),
    "ProxBP gradient": (ProxBP, "gradient"),
}
every_method = pytest.mark.parametrize("kind", METHODS)


def optimizer_for(model, kind, lr=0.5, prox_weight=0.5, **settings):
    method, solver = METHODS[kind]
    return method(model, lr=lr, prox_weight=prox_weight, solver=solver, **settings)


def statuses(optimizer):
    return {name: Status(int(layer["status"])) for name, layer in optimizer.solver_stats().items()}


def assert_finite(model, optimizer):
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for layer in optimizer.solver_stats().values():
        assert np.isfinite(list(layer.values())).all()


@pytest.mark.parametrize("kind", ["SIBP cg", "SIBP exact", "ProxBP exact"])
def test_a_batch_of_one_is_the_same_sweep(kind):
    model = mlp(6, 5, 4, 3)
    before = layers(model)
    x, y = batch(1, 6, 3)
    step(model, optimizer_for(model, kind), x, y)
    linear = linear_solve(0.5, 0.5)
    hidden = cg_solve(0.5, 0.5, torch.relu, 5) if kind == "SIBP cg" else linear
    assert_layers_close(layers(model), sweep(before, x, y, hidden, linear, through_new=kind != "ProxBP exact"))


@every_method
def test_a_batch_of_one_changes_every_kind_of_layer(kind):
    model = mlp(6, 5, 4, 3)
    before = layers(model)
    optimizer = optimizer_for(model, kind, lr=0.1)
    step(model, optimizer, *batch(1, 6, 3))
    assert_finite(model, optimizer)
    assert any(np.abs(change).max() > 1e-6 for change in displacement(before, layers(model)))


@every_method
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_empty_batch_keeps_the_weights(kind, reduction):
    model = mlp(6, 5, 4, 3)
    before = layers(model)
    optimizer = optimizer_for(model, kind, loss_average=reduction == "mean")
    step(model, optimizer, torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0, dtype=torch.long), reduction)
    assert_layers_close(layers(model), before, 0, 0)
    assert_finite(model, optimizer)


def dead(model: nn.Sequential, layer: int) -> nn.Sequential:
    """The model with a layer whose units are never active."""
    with torch.no_grad():
        model[layer].bias.fill_(-1e4)
    return model


@every_method
@pytest.mark.parametrize("layer", [0, 2])
def test_a_dead_layer_and_all_layers_below_keep_their_weights(kind, layer):
    model = dead(mlp(6, 5, 4, 3), layer)
    before = layers(model)
    optimizer = optimizer_for(model, kind, lr=0.1)
    for k in range(3):
        step(model, optimizer, *batch(9, 6, 3, seed=k))
        assert_finite(model, optimizer)
    after = layers(model)
    below = layer // 2 + 1
    assert_layers_close(after[:below], before[:below], 0, 0)
    last_bias, last_bias_before = after[-1][1], before[-1][1]
    assert last_bias is not None
    assert last_bias_before is not None
    assert np.abs(last_bias - last_bias_before).max() > 1e-3  # above a constant layer only the bias can learn


@every_method
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B", [1, 4, 30])
def test_zero_inputs_keep_the_first_weights(kind, bias, B):
    model = mlp(6, 5, 4, 3, bias=bias)
    before = layers(model)
    optimizer = optimizer_for(model, kind, lr=0.1)
    step(model, optimizer, torch.zeros(B, 6, dtype=torch.float64), torch.arange(B) % 3)
    assert_finite(model, optimizer)
    after = layers(model)
    np.testing.assert_array_equal(after[0][0], before[0][0])
    if not bias:
        assert_layers_close(after, before, 0, 0)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_in_the_input_keeps_all_weights(kind, dtype):
    model = mlp(6, 5, 4, 3).to(dtype)
    before = layers(model)
    optimizer = optimizer_for(model, kind)
    x, y = batch(9, 6, 3)
    good = x.clone()
    x[4, 2] = float("nan")
    step(model, optimizer, x.to(dtype), y)
    assert_layers_close(layers(model), before, 0, 0)
    assert_finite(model, optimizer)
    assert set(statuses(optimizer).values()) == {Status.NONFINITE}
    step(model, optimizer, good.to(dtype), y)
    assert Status.NONFINITE not in statuses(optimizer).values()  # the next batch is a new one


@every_method
def test_infinity_in_the_input_keeps_the_affected_weights(kind):
    """Layers above may continue: ReLU turns minus infinity into 0."""
    model = mlp(6, 5, 4, 3)
    before = layers(model)
    optimizer = optimizer_for(model, kind)
    x, y = batch(9, 6, 3)
    x[4, 2] = float("inf")
    step(model, optimizer, x, y)
    assert_finite(model, optimizer)
    assert_layers_close(layers(model)[:1], before[:1], 0, 0)
    assert statuses(optimizer)["0"] == Status.NONFINITE


@every_method
def test_a_non_finite_loss_keeps_all_weights(kind):
    model = mlp(6, 5, 4, 3)
    before = layers(model)
    optimizer = optimizer_for(model, kind)
    x, y = batch(9, 6, 3)
    optimizer.zero_grad()
    (F.cross_entropy(model(x), y) * float("inf")).backward()
    optimizer.step()
    assert_layers_close(layers(model), before, 0, 0)
    assert_finite(model, optimizer)


@every_method
def test_repeated_samples_are_solved(kind):
    model = mlp(40, 30, 20, 3)
    optimizer = optimizer_for(model, kind, lr=0.1)
    x = randn(1, 40).expand(16, 40).contiguous()
    with torch.no_grad():
        start = F.cross_entropy(model(x), torch.zeros(16, dtype=torch.long))
    for _ in range(3):
        step(model, optimizer, x, torch.zeros(16, dtype=torch.long))
        assert_finite(model, optimizer)
    with torch.no_grad():
        assert F.cross_entropy(model(x), torch.zeros(16, dtype=torch.long)) < start
