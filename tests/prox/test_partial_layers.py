"""Layers with only weight or bias optimized: the other one gets the loss's own gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_problems import ridge
from mlp_sweeps import batch, layers, mlp, step, sweep
from torch import nn

from sibp import SIBP, ProxBP

ETA, LAM = 0.4, 0.5


def bias_alone(P: np.ndarray, Z: np.ndarray, D: np.ndarray, D_z: np.ndarray) -> np.ndarray:
    """The linear subproblem on the column of ones."""
    b = ridge(np.ones((len(P), 1)), ETA * D_z, LAM)
    return np.vstack([np.zeros((P.shape[1] - 1, b.shape[1])), b])


def weight_alone(P: np.ndarray, Z: np.ndarray, D: np.ndarray, D_z: np.ndarray) -> np.ndarray:
    """The linear subproblem without the column of ones."""
    W = ridge(P[:, :-1], ETA * D_z, LAM)
    return np.vstack([W, np.zeros((1, W.shape[1]))])


@pytest.mark.parametrize("method", [SIBP, ProxBP])
@pytest.mark.parametrize("B", [4, 12])
@pytest.mark.parametrize(("moving", "solve"), [("bias", bias_alone), ("weight", weight_alone)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_trained_half_is_solved_and_the_other_gets_its_gradient(method, B, moving, solve, reduction):
    model = mlp(8, 6, 3)
    before = layers(model)
    x, y = batch(B, 8, 3)
    F.cross_entropy(model(x), y, reduction=reduction).backward()
    ordinary = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    moved = [p for name, p in model.named_parameters() if name.endswith(moving)]
    optimizer = method(model, lr=ETA, prox_weight=LAM, solver="exact", params=moved, loss_average=reduction == "mean")
    step(model, optimizer, x, y, reduction)
    through_new = method is SIBP
    expected = sweep(before, x, y, solve, solve, through_new=through_new)
    for (W, b), (W_expected, b_expected) in zip(layers(model), expected, strict=True):
        np.testing.assert_allclose(W, W_expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(b, b_expected, rtol=1e-10, atol=1e-10)
    other = "weight" if moving == "bias" else "bias"
    # Where weights move, differences below have gone through the new ones: only the last layer's are the loss's own.
    names = [f"2.{other}"] if moving == "weight" and through_new else [f"0.{other}", f"2.{other}"]
    parameters = dict(model.named_parameters())
    for name in names:
        torch.testing.assert_close(parameters[name].grad, ordinary[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_a_frozen_half_gets_no_gradient(method):
    model = mlp(8, 6, 3)
    first = model[0]
    assert isinstance(first, nn.Linear)
    first.weight.requires_grad_(False)
    weight, bias = first.weight.clone(), first.bias.detach().clone()
    step(model, method(model, lr=ETA, prox_weight=LAM), *batch(12, 8, 3))
    assert first.weight.grad is None
    assert torch.equal(first.weight, weight)
    assert not torch.equal(first.bias, bias)
