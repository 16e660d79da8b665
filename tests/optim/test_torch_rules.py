"""Torch's own optimizers, selected by configs: their settings mean what a few lines of NumPy say.

Every rule is written from its paper, for one vector and the gradients of a quadratic; sources beside them.
"""

import numpy as np
import pytest
import torch
from torch import nn

from sibp.experiment.optimizers import build_optimizer

H = np.array([[3.0, 1.0], [1.0, 0.5]])
START, STEPS = np.array([1.0, -2.0]), 5


class Quadratic(nn.Module):
    """x^T H x / 2, with one parameter."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(START))

    def forward(self):
        return self.x @ torch.tensor(H) @ self.x / 2


def nesterov(x, t, state, lr, momentum, weight_decay):
    """Sutskever et al. 2013, with the momentum looked ahead, as Bengio et al. 2012 (1212.0901) rewrite it."""
    g = H @ x + weight_decay * x
    v = state["v"] = g if t == 0 else momentum * state["v"] + g
    return x - lr * (g + momentum * v)


def adamw(x, t, state, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """Loshchilov & Hutter 2019 (1711.05101), algorithm 2."""
    g = H @ x
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g * g
    m, v = m / (1 - beta1 ** (t + 1)), v / (1 - beta2 ** (t + 1))
    return x - lr * weight_decay * x - lr * m / (np.sqrt(v) + eps)


def rmsprop(x, t, state, lr, decay, momentum, weight_decay, eps=1e-8):
    """Tieleman & Hinton 2012, lecture 6.5; momentum on the normalised gradient."""
    g = H @ x + weight_decay * x
    v = state["v"] = decay * state.get("v", 0) + (1 - decay) * g * g
    m = state["m"] = momentum * state.get("m", 0) + g / (np.sqrt(v) + eps)
    return x - lr * m


def adagrad(x, t, state, lr, weight_decay, eps=1e-10):
    """Duchi et al. 2011, the diagonal form."""
    g = H @ x + weight_decay * x
    v = state["v"] = state.get("v", 0) + g * g
    return x - lr * g / (np.sqrt(v) + eps)


RULES = [
    (nesterov, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}),
    (nesterov, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.02}),
    (adamw, {"lr": 0.1, "weight_decay": 0.3}),
    (rmsprop, {"lr": 0.1, "decay": 0.7, "momentum": 0.4, "weight_decay": 0.02}),
    (adagrad, {"lr": 0.4, "weight_decay": 0.02}),
]


@pytest.mark.parametrize(("rule", "settings"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_settings_have_the_papers_meaning(rule, settings):
    model = Quadratic()
    optimizer = build_optimizer({"name": rule.__name__} | settings, model)
    x, state = START, {}
    for t in range(STEPS):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        x = rule(x, t, state, **settings)
        np.testing.assert_allclose(model.x.detach().numpy(), x, rtol=1e-6)


def lbfgs_step(max_iter: int, line_search: bool) -> tuple[np.ndarray, int]:
    """The weights after a step of L-BFGS, and the number of loss evaluations."""
    model, losses = Quadratic(), []
    settings = {"name": "lbfgs", "lr": 0.3, "max_iter": max_iter, "history": 5, "line_search": line_search}
    optimizer = build_optimizer(settings, model)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        losses.append(loss.item())
        return losses[-1]

    assert optimizer.step(closure) == START @ H @ START / 2
    return model.x.detach().numpy(), len(losses)


def test_lbfgs_settings():
    """One iteration is a gradient step, cut to 1/||g||_1 times lr; several with a line search solve a quadratic."""
    g = H @ START
    x, looks = lbfgs_step(max_iter=1, line_search=False)
    np.testing.assert_allclose(x, START - 0.3 * min(1, 1 / np.abs(g).sum()) * g)
    assert looks == 1
    x, looks = lbfgs_step(max_iter=30, line_search=True)
    assert np.linalg.norm(x) < 1e-3  # 30 gradient steps of 0.3 end at 0.5
    assert looks > 3
