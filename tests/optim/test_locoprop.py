"""LocoProp against its published steps, written in a few lines of NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp.optim.locoprop import LocoProp

F64 = torch.float64
BATCH = 8


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = [(torch.randn(BATCH, 4, generator=generator, dtype=F64), generator) for _ in range(count)]
    return [(x, torch.randint(3, (BATCH,), generator=g)) for x, g in draw]


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def published(model, data, lr, act_lr, matching, K, momentum, decay, eps=1e-5):
    """The authors' training step: targets by the gradient of the mean loss, then K steps of TensorFlow's RMSprop."""
    W = [model[0].weight.detach().numpy().T, model[2].weight.detach().numpy().T]  # inputs x outputs, as theirs
    b = [model[0].bias.detach().numpy(), model[2].bias.detach().numpy()]
    slots = {}

    def rmsprop(name, g, size):
        rms, mom = slots.get(name, (np.ones_like(g), np.zeros_like(g)))
        rms = decay * rms + (1 - decay) * g * g
        mom = momentum * mom + size * g / np.sqrt(rms + eps)
        slots[name] = rms, mom
        return mom

    transfer = [np.tanh, softmax] if matching else [lambda z: z] * 2
    for x, y in data:
        z1 = x.numpy() @ W[0] + b[0]
        h = np.tanh(z1)
        z2 = h @ W[1] + b[1]
        g2 = (softmax(z2) - np.eye(3)[y.numpy()]) / BATCH
        g1 = g2 @ W[1].T * (1 - h**2)
        for layer, inputs, z, g in ((1, h, z2, g2), (0, x.numpy(), z1, g1)):
            target = transfer[layer](z) - act_lr * g
            for i in range(K):
                delta = transfer[layer](inputs @ W[layer] + b[layer]) - target
                size = lr * max(1 - i / K, 0.25)
                dW, db = rmsprop((layer, "W"), inputs.T @ delta, size), rmsprop((layer, "b"), delta.sum(0), size)
                W[layer], b[layer] = W[layer] - dW, b[layer] - db
    return [W[0].T, b[0], W[1].T, b[1]]


@pytest.mark.parametrize("variant", ["squared", "matching"])
@pytest.mark.parametrize(("K", "momentum", "decay"), [(1, 0.0, 0.9), (10, 0.9, 0.5)])
def test_takes_the_published_steps(variant: str, K: int, momentum: float, decay: float):
    """Their activation_learning_rate acts on the mean loss, ours on the sum."""
    expected = published(net(), batches(3), 0.02, 3.0, variant == "matching", K, momentum, decay)
    model = net()
    optimizer = LocoProp(model, 0.02, 3.0 / BATCH, variant, "softmax", K, momentum, decay)
    for x, y in batches(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for p, q in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q, rtol=1e-9, atol=1e-12)


def test_a_convolution_is_a_layer_on_its_patches():
    torch.manual_seed(2)
    conv = nn.Conv2d(2, 4, (3, 1), groups=2).to(F64)
    x = torch.randn(3, 2, 3, 1, dtype=F64)
    linears = nn.ModuleList(nn.Linear(3, 2).to(F64) for _ in range(2))
    with torch.no_grad():
        for g, linear in enumerate(linears):
            linear.weight.copy_(conv.weight[2 * g : 2 * g + 2].flatten(1))
            linear.bias.copy_(conv.bias[2 * g : 2 * g + 2])
    rows, optimizers = x[..., 0].unbind(1), [LocoProp(conv, 0.1, 1.0), LocoProp(linears, 0.1, 1.0)]
    target = torch.randn(3, 4, dtype=F64)
    F.mse_loss(conv(x).flatten(1).sigmoid(), target).backward()
    F.mse_loss(
        torch.cat([linear(row) for linear, row in zip(linears, rows, strict=True)], 1).sigmoid(), target
    ).backward()
    for optimizer in optimizers:
        optimizer.step()
    for g, linear in enumerate(linears):
        torch.testing.assert_close(conv.weight[2 * g : 2 * g + 2].flatten(1), linear.weight)
        torch.testing.assert_close(conv.bias[2 * g : 2 * g + 2], linear.bias)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"variant": "m"}, "Invalid variant: 'm'; choose one of squared, matching"),
        ({"output": "relu"}, "Invalid output: 'relu'; choose one of identity, softmax, sigmoid"),
        ({"inner_steps": 0}, "Invalid inner_steps: 0"),
        ({"inner_steps": True}, "Invalid inner_steps: True"),
        ({"momentum": 1.0}, "Invalid momentum: 1.0; it has to be >= 0 and < 1"),
        ({"activation_lr": -1.0}, "Invalid activation_lr: -1.0"),
    ],
)
def test_invalid_options_are_refused_with_their_value(option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LocoProp(net(), **option)
