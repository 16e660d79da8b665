"""Limits and invariances of a whole training step."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_problems import SIDES, features_matrix, moved, randn
from mlp_sweeps import assert_layers_close, batch, displacement, gradient_solve, layers, mlp, step, sweep
from torch import nn

from sibp import SIBP, ProxBP
from sibp.activations import RELU
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.nonlinear import solve_nonlinear

METHODS: dict[str, Callable[..., SIBP | ProxBP]] = {
    "SIBP cg": lambda model, **settings: SIBP(model, solver="cg:5", **settings),
    "SIBP exact": lambda model, **settings: SIBP(model, solver="exact", **settings),
    "ProxBP exact": lambda model, **settings: ProxBP(model, solver="exact", **settings),
    "ProxBP cg": lambda model, **settings: ProxBP(model, solver="cg:3", **settings),
    "ProxBP gradient": lambda model, **settings: ProxBP(model, solver="gradient", **settings),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def moves(method, x, y, lr=0.4, prox_weight=0.5, reduction="sum", sizes=(8, 6, 5, 3), activation=nn.ReLU):
    model = mlp(*sizes, activation=activation)
    before = layers(model)
    optimizer = method(model, lr=lr, prox_weight=prox_weight, loss_average=reduction == "mean")
    step(model, optimizer, x, y, reduction)
    return displacement(before, layers(model))


@every_method
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("B", [4, 30])
def test_a_large_proximal_weight_gives_gradient_descent(method, activation, B):
    """For lam -> infinity lam (W_new - W) -> -eta dL/dW at every layer, weights and biases, L the summed loss."""
    x, y = batch(B, 8, 3)
    eta, lam = 0.1, 1e8
    model = mlp(8, 6, 5, 3, activation=activation)
    F.cross_entropy(model(x), y, reduction="sum").backward()
    gradients = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
    changes = moves(method, x, y, eta, lam, activation=activation)
    assert len(changes) == len(gradients) == 6
    for change, gradient in zip(changes, gradients, strict=True):
        np.testing.assert_allclose(lam * change / eta, -gradient, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())


@every_method
@pytest.mark.parametrize("B", [4, 30])
def test_a_large_proximal_weight_and_step_give_gradient_steps_layer_by_layer(method, B):
    """With eta/lam fixed weights move by -(eta/lam) E^T A; SIBP's E has come through weights that moved already."""
    x, y = batch(B, 8, 3)
    eta, lam = 1e3, 1e8
    before = layers(mlp(8, 6, 5, 3))
    changes = moves(method, x, y, eta, lam)
    through_new = method(mlp(2, 2)).defaults["backward_weights"] == "new"
    after = sweep(before, x, y, gradient_solve(eta, lam), gradient_solve(eta, lam), through_new=through_new)
    for change, expected in zip(changes, displacement(before, after), strict=True):
        np.testing.assert_allclose(change, expected, rtol=1e-6, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("side", SIDES)
def test_a_small_step_is_the_gradient_preconditioned_by_the_active_samples(side):
    """For eta -> 0 at fixed lam: dW/eta = -(Phi_a' Phi_a + lam I)^-1 Phi_a' D_a, Phi_a the rows of active samples."""
    features, eta, lam = DenseFeatures(randn(1, 9, 5)), 1e-6, 0.3
    Z, D = randn(1, 9, 4, seed=1), randn(1, 9, 4, seed=2)
    coordinates = side(features)
    X = moved(solve_nonlinear(coordinates, Z, Z.relu() - eta * D, lam, RELU, 60))[0]
    P = features_matrix(features)[0]
    for j in range(4):
        active = Z[0, :, j].numpy() > 0
        system = P[active].T @ P[active] + lam * np.eye(6)
        expected = -np.linalg.solve(system, P[active].T @ D[0, active, j].numpy())
        np.testing.assert_allclose(X[:, j] / eta, expected, rtol=1e-5, atol=1e-6)


@every_method
def test_twice_the_batch_and_twice_the_proximal_weight_give_the_same_step(method):
    x, y = batch(5, 8, 3)
    once = moves(method, x, y)
    twice = moves(method, torch.cat([x, x]), torch.cat([y, y]), prox_weight=1.0)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@every_method
def test_the_order_of_samples_does_not_matter(method):
    x, y = batch(7, 8, 3)
    order = torch.tensor([3, 6, 0, 1, 5, 2, 4])
    for a, b in zip(moves(method, x, y), moves(method, x[order], y[order]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@every_method
def test_permuting_hidden_units_permutes_the_step(method):
    order = torch.tensor([2, 5, 0, 1, 4, 3])
    model, permuted = mlp(8, 6, 5, 3), mlp(8, 6, 5, 3)
    with torch.no_grad():
        first, second = permuted[0], permuted[2]
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    x, y = batch(7, 8, 3)
    for m in (model, permuted):
        step(m, method(m, lr=0.4, prox_weight=0.5), x, y)
    after = layers(model)
    (W1, b1), (W2, b2) = after[0], after[1]
    assert b1 is not None
    rows = order.numpy()
    assert_layers_close(layers(permuted), [(W1[rows], b1[rows]), (W2[:, rows], b2), after[2]], 1e-9, 1e-11)


@every_method
def test_mean_and_sum_of_the_loss_give_the_same_step(method):
    x, y = batch(7, 8, 3)
    for a, b in zip(moves(method, x, y, reduction="mean"), moves(method, x, y, reduction="sum"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@every_method
def test_a_wrong_loss_average_scales_eta_by_the_batch_size(method):
    x, y = batch(7, 8, 3)

    def after(told, reduction, lr):
        model = mlp(8, 6, 5, 3)
        step(model, method(model, lr=lr, prox_weight=0.5, loss_average=told), x, y, reduction)
        return layers(model)

    # A sum declared a mean multiplies each error signal by 7 once more; a mean declared a sum divides it by 7.
    assert_layers_close(after(True, "sum", 0.1), after(False, "sum", 0.7), 1e-9, 1e-10)
    assert_layers_close(after(False, "mean", 0.7), after(True, "mean", 0.1), 1e-9, 1e-10)
    with pytest.raises(AssertionError):
        assert_layers_close(after(True, "sum", 0.1), after(False, "sum", 0.1), 1e-3, 1e-3)


@every_method
def test_the_number_of_averaged_terms_can_be_given(method):
    x, y = batch(7, 8, 3)
    by_number, by_batch = mlp(8, 6, 5, 3), mlp(8, 6, 5, 3)
    step(by_number, method(by_number, lr=0.4, prox_weight=0.5, loss_average=7), x, y)
    step(by_batch, method(by_batch, lr=0.4, prox_weight=0.5), x, y)
    assert_layers_close(layers(by_number), layers(by_batch), 1e-14, 1e-14)
