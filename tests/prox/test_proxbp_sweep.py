"""ProxBP's whole step against a sweep written by hand, and its gradient mode against SGD."""

import pytest
import torch
from mlp_sweeps import assert_layers_close, batch, layers, linear_solve, mlp, step, sweep
from torch import nn

from sibp import ProxBP

NETS = {
    "B < n": ((12, 9, 8, 4), 5, True),
    "B > n": ((5, 6, 4, 3), 20, True),
    "mixed, no bias": ((14, 3, 9, 3), 7, False),
}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("eta", "lam"), [(0.1, 1.0), (1.0, 0.1), (0.5, 10.0)])
@pytest.mark.parametrize("net", NETS)
def test_exact_is_the_sweep_through_the_old_weights(net, eta, lam, activation):
    sizes, B, bias = NETS[net]
    model = mlp(*sizes, bias=bias, activation=activation)
    optimizer = ProxBP(model, lr=eta, prox_weight=lam)
    expected = layers(model)
    s = torch.relu if activation is nn.ReLU else torch.tanh
    for k in range(3):
        x, y = batch(B, sizes[0], sizes[-1], seed=k)
        step(model, optimizer, x, y)
        expected = sweep(expected, x, y, linear_solve(eta, lam), linear_solve(eta, lam), s, through_new=False)
        assert_layers_close(layers(model), expected)


@pytest.mark.parametrize("net", NETS)
def test_cg_with_as_many_iterations_as_dimensions_is_exact(net):
    sizes, B, bias = NETS[net]
    exact, cg = mlp(*sizes, bias=bias), mlp(*sizes, bias=bias)
    x, y = batch(B, sizes[0], sizes[-1])
    step(exact, ProxBP(exact, lr=0.5, prox_weight=0.5), x, y)
    step(cg, ProxBP(cg, lr=0.5, prox_weight=0.5, solver=f"cg:{min(B, max(sizes) + 1)}"), x, y)
    assert_layers_close(layers(cg), layers(exact), rtol=1e-7, atol=1e-8)


def test_few_iterations_are_not_the_closed_form():
    exact, cg = mlp(12, 9, 8, 4), mlp(12, 9, 8, 4)
    x, y = batch(10, 12, 4)
    step(exact, ProxBP(exact, lr=0.5, prox_weight=0.1), x, y)
    step(cg, ProxBP(cg, lr=0.5, prox_weight=0.1, solver="cg:1"), x, y)
    with pytest.raises(AssertionError):
        assert_layers_close(layers(cg), layers(exact), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("net", NETS)
def test_gradient_mode_is_sgd(net, reduction):
    """With step size eta/lam on the summed loss, which is eta B/lam on the mean."""
    sizes, B, bias = NETS[net]
    eta, lam = 0.3, 7.0
    proximal, plain = mlp(*sizes, bias=bias), mlp(*sizes, bias=bias)
    optimizer = ProxBP(proximal, lr=eta, prox_weight=lam, solver="gradient", loss_average=reduction == "mean")
    sgd = torch.optim.SGD(plain.parameters(), lr=eta / lam * (B if reduction == "mean" else 1))
    for k in range(3):
        x, y = batch(B, sizes[0], sizes[-1], seed=k)
        step(proximal, optimizer, x, y, reduction)
        step(plain, sgd, x, y, reduction)
        assert_layers_close(layers(proximal), layers(plain), rtol=1e-12, atol=1e-12)
