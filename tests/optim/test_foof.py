"""FOOF and its semi-implicit hybrid: against dense formulas, and against ProxBP and SIBP, whose limits they are."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP, ProxBP
from sibp.optim.foof import FOOF
from sibp.optim.sibp_foof import RunningSIBP
from sibp.prox.solvers.inverse import damped_inverse

F64 = torch.float64
BATCH = 7


def net(conv: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    if conv:
        layers = [nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    else:
        layers = [nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).to(F64)


def batches(count: int, conv: bool = False):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(BATCH, 32, generator=generator, dtype=F64)
        yield x.unflatten(1, (2, 4, 4)) if conv else x, torch.randint(3, (BATCH,), generator=generator)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, data) -> list[torch.Tensor]:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("method", "limit"), [(FOOF, ProxBP), (RunningSIBP, SIBP)])
def test_without_decay_it_is_the_exact_proximal_step(method, limit, conv: bool):
    one, other = net(conv), net(conv)
    found = steps(one, method(one, 0.7, 3.0, decay=0.0, inverse_every=1), batches(4, conv))
    expected = steps(other, limit(other, 0.7, 3.0, solver="exact"), batches(4, conv))
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def numpy_foof(model: nn.Sequential, data, eta: float, lam: float, m: float, T: int, S: int) -> list[np.ndarray]:
    """Algorithm 1 on a tanh network of two layers, in NumPy; the weights [W, b] at the end."""
    W1, b1, W2, b2 = (p.detach().numpy() for p in model.parameters())
    W = [np.c_[W1, b1], np.c_[W2, b2]]
    kept: list[list[tuple[float, np.ndarray]]] = [[], []]
    P: list[np.ndarray] = [np.empty(0), np.empty(0)]
    for t, (x, y) in enumerate(data):
        ones = np.ones((BATCH, 1))
        phi = [np.c_[x.numpy(), ones]]
        phi.append(np.c_[np.tanh(phi[0] @ W[0].T), ones])
        z = phi[1] @ W[1].T
        softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        D2 = softmax - np.eye(3)[y.numpy()]
        D1 = (D2 @ W[1][:, :-1]) * (1 - phi[1][:, :-1] ** 2)
        for layer, D in ((0, D1), (1, D2)):
            if t < T or t % T == 0 or t % T > T - S:
                kept[layer] = [(m * w, gram) for w, gram in kept[layer]] + [(1 - m, phi[layer].T @ phi[layer])]
            if t % T == 0 or (t < T and t in (1, 2, 4, 8)):
                mean = sum(w * gram for w, gram in kept[layer]) / sum(w for w, _ in kept[layer])
                P[layer] = np.linalg.inv(mean + lam * np.eye(len(mean)))
            W[layer] = W[layer] - eta * D.T @ phi[layer] @ P[layer]
    return W


@pytest.mark.parametrize(("T", "S"), [(1, 1), (3, 3), (5, 2)])
def test_follows_algorithm_1(T: int, S: int):
    model = net()
    expected = numpy_foof(model, batches(13), 0.8, 5.0, 0.6, T, S)
    W1, b1, W2, b2 = steps(model, FOOF(model, 0.8, 5.0, 0.6, T, S), batches(13))
    np.testing.assert_allclose(np.c_[W1, b1], expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.c_[W2, b2], expected[1], rtol=1e-9, atol=1e-12)


def test_covariance_steps_restricts_the_batches():
    """With S = 1 the covariance takes in the batches that an inversion follows, and all of the first period."""
    model = net()
    optimizer = FOOF(model, inverse_every=4, covariance_steps=1)
    grams = []
    for x, y in batches(9):
        steps(model, optimizer, [(x, y)])
        grams.append(copy.deepcopy(optimizer.state[model[0].weight]["covariance"]))
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(grams)]
    assert changed == [True] * 4 + [False] * 3 + [True]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"damping": 0.0}, "Invalid damping: 0.0; it has to be > 0"),
        ({"decay": 1.0}, "Invalid decay: 1.0; it has to be >= 0 and < 1"),
        ({"inverse_every": 0}, "Invalid inverse_every: 0; it has to be a whole number of 1 or more"),
        ({"covariance_steps": 2.5}, "Invalid covariance_steps: 2.5"),
        ({"lr": -1.0}, "Invalid lr: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay: -1.0"),
    ],
)
def test_invalid_options_are_refused_with_their_value(option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        FOOF(net(), **option)


def test_the_inverse_never_raises():
    S = torch.ones(3, 3)  # of rank 1: with a lam far below its rounding, a lam at its rounding
    inverse = damped_inverse(S, 1e-30)
    assert torch.isfinite(inverse).all()
    assert damped_inverse(torch.full((3, 3), torch.nan), 1.0).isnan().all()
    A = torch.randn(2, 9, 4, dtype=F64)
    expected = torch.linalg.inv(A.mT @ A + torch.tensor([0.5, 2.0], dtype=F64)[:, None, None] * torch.eye(4, dtype=F64))
    torch.testing.assert_close(damped_inverse(A.mT @ A, torch.tensor([0.5, 2.0], dtype=F64)), expected)


def test_the_inverse_of_nearly_dependent_inputs_is_accurate_in_single_precision():
    """Equal inputs: (1 1^T + lam I)^-1 = (I - 1 1^T / (n + lam)) / lam, whose condition is n / lam = 5e5."""
    n, lam = 50, 1e-4
    inverse = damped_inverse(torch.ones(n, n), lam)
    expected = (torch.eye(n, dtype=F64) - 1 / (n + lam)) / lam
    torch.testing.assert_close(inverse.double(), expected, rtol=1e-6, atol=0)
