"""Block coordinate descent and difference target propagation against their papers' rules, in a few lines of NumPy."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp.activations import IDENTITY, RELU, leaky_relu
from sibp.experiment.optimizers import build_optimizer
from sibp.optim.bcd import BCD, input_change, split
from sibp.optim.dtp import DTP
from sibp.runs.errors import UserError

F64 = torch.float64
BATCH, WIDTHS = 8, (5, 6, 4, 3)


def net(activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(WIDTHS)]
    return nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2]).to(F64)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(BATCH, WIDTHS[0], generator=generator, dtype=F64) for _ in range(count)]
    return [(x, torch.randint(3, (BATCH,), generator=generator)) for x in xs]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, data) -> list[np.ndarray]:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [p.detach().numpy() for p in model.parameters()]


def weights(model: nn.Module) -> tuple[list[np.ndarray], list[np.ndarray]]:
    values = [p.detach().numpy().copy() for p in model.parameters()]
    return values[0::2], values[1::2]


def softmax_less_labels(z: np.ndarray, y: Tensor) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(3)[y.numpy()]


def assert_close(found: list[np.ndarray], W: list[np.ndarray], b: list[np.ndarray]) -> None:
    for p, q in zip(found, [q for pair in zip(W, b, strict=True) for q in pair], strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-12)


# -- block coordinate descent ------------------------------------------------------------------------------------------


def relu_split(V: np.ndarray, Z: np.ndarray, k: float) -> np.ndarray:
    """The closed form that the paper gives for ReLU (its lemma on 1-d problems), with its three cases."""
    return np.where(
        V + k * Z < 0,
        np.minimum(Z, 0),
        np.where((Z >= 0) | (V * (k - np.sqrt(k * (k + 1))) <= k * Z), (V + k * Z) / (1 + k), np.minimum(Z, 0)),
    )


def numpy_bcd(model, data, eta: float, gamma: float, rho: float, alpha: float):
    """The sweep as the class documents it, on [W, b] in one block; all systems dense."""
    W, b = weights(model)
    for x, y in data:
        V, U = [x.numpy()], []
        for w, c in zip(W, b, strict=True):
            U.append(V[-1] @ w.T + c)
            V.append(np.maximum(U[-1], 0))
        above = U[2] - eta * softmax_less_labels(U[2], y)
        U[2] = (gamma * above + rho * U[2]) / (gamma + rho)
        for layer in (2, 1, 0):
            if layer < 2:
                U[layer] = relu_split(above, U[layer], (rho + alpha) / gamma)
            phi, old = np.c_[V[layer], np.ones(BATCH)], np.c_[W[layer], b[layer]]
            system = rho * phi.T @ phi + alpha * np.eye(phi.shape[1])
            new = np.linalg.solve(system, (rho * U[layer].T @ phi + alpha * old).T).T
            W[layer], b[layer] = new[:, :-1], new[:, -1]
            system = rho * W[layer].T @ W[layer] + gamma * np.eye(phi.shape[1] - 1)
            above = np.linalg.solve(system, (rho * (U[layer] - b[layer]) @ W[layer] + gamma * V[layer]).T).T
    return W, b


@pytest.mark.parametrize(("gamma", "rho", "alpha"), [(1.0, 1.0, 5.0), (8.0, 0.5, 1.0)])
def test_bcd_sweeps_as_documented(gamma: float, rho: float, alpha: float):
    model = net(nn.ReLU)
    expected = numpy_bcd(model, batches(3), 2.0, gamma, rho, alpha)
    assert_close(steps(model, BCD(model, 2.0, gamma, rho, alpha), batches(3)), *expected)


@pytest.mark.parametrize("s", [RELU, IDENTITY, leaky_relu(0.3)], ids=lambda s: s.name)
def test_the_split_minimises_every_entry(s):
    generator = torch.Generator().manual_seed(0)
    V, Z = (2 * torch.randn(200, generator=generator, dtype=F64) for _ in range(2))
    grid = torch.linspace(-8, 8, 160_001, dtype=F64)
    for kappa in (0.2, 3.0):

        def cost(U: Tensor, kappa: float = kappa) -> Tensor:
            return (V[:, None] - s.value(U)).square() + kappa * (U - Z[:, None]).square()

        found = cost(split(V, Z, kappa, s)[:, None])[:, 0]
        assert (found <= cost(grid).amin(1) + 1e-12).all()
    torch.testing.assert_close(split(s.value(Z), Z, 1.0, s), Z, rtol=0, atol=0)  # at the target already: bit-identical


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_the_target_of_the_layer_below_solves_a_ridge_problem(shape: tuple[int, int]):
    W, residual = np.random.default_rng(0).normal(size=shape), np.random.default_rng(1).normal(size=(4, shape[0]))
    expected = np.linalg.solve(W.T @ W + 0.3 * np.eye(shape[1]), W.T @ residual.T).T
    np.testing.assert_allclose(input_change(torch.tensor(residual), torch.tensor(W), 0.3), expected, rtol=1e-9)


def test_bcd_names_the_activations_it_supports():
    model = net(nn.Tanh)
    with pytest.raises(RuntimeError, match="layer '2': BCD supports ReLU, LeakyReLU and the identity only, not tanh"):
        steps(model, BCD(model), batches(1))


# -- difference target propagation -------------------------------------------------------------------------------------


def numpy_dtp(model, data, lr: float, target_step: float, inverse_lr: float, V: np.ndarray):
    """The authors' training step without noise: all targets and gradients of means over the batch, then RMSprop."""
    W, b = weights(model)
    c, slots = np.zeros(WIDTHS[1]), {}

    def rmsprop(name, value, g, rate):
        mean, square, step = slots.get(name, (0 * g, 0 * g, 0 * g))
        mean, square = 0.95 * mean + 0.05 * g, 0.95 * square + 0.05 * g**2
        step = 0.9 * step - rate * g / np.sqrt(square - mean**2 + 0.001)
        slots[name] = mean, square, step
        return value + step

    for x, y in data:
        h1 = np.tanh(x.numpy() @ W[0].T + b[0])
        h2 = np.tanh(h1 @ W[1].T + b[1])
        E3 = softmax_less_labels(h2 @ W[2].T + b[2], y) / BATCH
        r = np.tanh(h2 @ V.T + c)
        E = 2 / BATCH * (r - h1) * (1 - r**2)
        V, c = rmsprop("V", V, E.T @ h2, inverse_lr), rmsprop("c", c, E.sum(0), inverse_lr)
        target2 = h2 - target_step * E3 @ W[2]
        target1 = h1 - np.tanh(h2 @ V.T + c) + np.tanh(target2 @ V.T + c)
        E2 = 2 / BATCH * (h2 - target2) * (1 - h2**2)
        E1 = 2 / BATCH * (h1 - target1) * (1 - h1**2)
        for layer, E, inputs in ((2, E3, h2), (1, E2, h1), (0, E1, x.numpy())):
            W[layer] = rmsprop(("W", layer), W[layer], E.T @ inputs, lr)
            b[layer] = rmsprop(("b", layer), b[layer], E.sum(0), lr)
    return W, b


def test_dtp_takes_the_published_steps():
    """Their step of the first target acts on the mean loss, ours on the sum."""
    model = net(nn.Tanh)
    torch.manual_seed(7)
    V = nn.init.orthogonal_(torch.empty(WIDTHS[1], WIDTHS[2], dtype=F64)).numpy()
    expected = numpy_dtp(model, batches(5), 0.02, 3.0, 0.01, V)
    torch.manual_seed(7)
    assert_close(steps(model, DTP(model, 0.02, 3.0 / BATCH, 0.01, noise=0.0), batches(5)), *expected)


def test_the_inverses_of_dtp_learn_to_invert_their_layer():
    """The inverse of an invertible layer, trained alone (lr = 0): the reconstruction error falls to the noise."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(F64)
    optimizer = DTP(model, lr=0.0, inverse_lr=0.01, noise=0.1)
    torch.manual_seed(0)
    errors = []
    for _ in range(300):
        x, y = torch.randn(32, 4, dtype=F64), torch.randint(3, (32,))
        steps(model, optimizer, [(x, y)])
        h = model[:2](x)
        f, memory = model[:4](x), optimizer.state[model[2].weight]
        errors.append((torch.tanh(f @ memory["V"].T + memory["c"]) - h).square().mean().item())
    assert errors[-1] < 0.1 * errors[0]


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bcd", "dtp"])
def test_networks_with_other_layers_are_refused(name: str):
    settings = {
        "bcd": {"lr": 1.0, "gamma": 1.0, "rho": 1.0, "prox_weight": 1.0},
        "dtp": {"lr": 0.1, "target_step": 0.1, "inverse_lr": 0.1, "noise": 0.1},
    }
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for model, layer in ((conv, r"layer '0' \(Conv2d\)"), (norm, r"layer '1' \(BatchNorm1d\)")):
        with pytest.raises(
            UserError, match=f"{layer}: {name.upper()} is for networks of linear layers and activations"
        ):
            build_optimizer({"name": name} | settings[name], model)
        assert "forward" not in vars(model[0])


@pytest.mark.parametrize(
    ("make", "option", "message"),
    [
        (BCD, {"gamma": 0.0}, "Invalid gamma: 0.0; it has to be > 0"),
        (BCD, {"rho": -1.0}, "Invalid rho: -1.0"),
        (BCD, {"prox_weight": 0.0}, "Invalid prox_weight: 0.0"),
        (DTP, {"noise": -0.1}, "Invalid noise: -0.1"),
        (DTP, {"inverse_lr": float("nan")}, "Invalid inverse_lr: nan"),
        (DTP, {"target_step": -1.0}, "Invalid target_step: -1.0"),
    ],
)
def test_invalid_options_are_refused_with_their_value(make, option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(net(nn.ReLU), **option)
