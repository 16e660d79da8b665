"""K-FAC against dense Fisher matrices in float64, where it is exact, and against its formula everywhere else.

A Kronecker product of expectations is the expectation of Kronecker products for one sample, and where a layer's inputs
are the same for all samples; a layer's block is then the exact one.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp.optim import kfac
from sibp.optim.kfac import KFAC, LIKELIHOODS

F64 = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(F64)


def samples(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator, dtype=F64), torch.randint(3, (count,), generator=generator)


def joint(layer: nn.Linear) -> Tensor:
    """[W, b], its transpose flattened row by row, as `torch.kron(A, G)` numbers it."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1).T.flatten()


def gradient(loss: Tensor, layer: nn.Linear) -> Tensor:
    W, b = torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
    return torch.cat([W, b[:, None]], 1).T.flatten()


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_one_sample_gives_the_exact_block_of_every_layer(likelihood: str, monkeypatch: pytest.MonkeyPatch):
    """The outer product of the gradients of log p(y), with y the sampled label."""
    model, plain = net(), net()
    optimizer, drawn = KFAC(model, likelihood=likelihood), []
    draw = LIKELIHOODS[likelihood]
    monkeypatch.setitem(kfac.LIKELIHOODS, likelihood, lambda z, g: drawn.append(draw(z, g)) or drawn[-1])
    x, _ = samples(1)
    model(x)
    z = plain(x)
    for layer, twin in ((model[0], plain[0]), (model[2], plain[2])):
        memory = optimizer.state[layer.weight]
        g = gradient((z * drawn[0]).sum(), twin)  # the gradient with respect to z is the drawn error signal
        torch.testing.assert_close(torch.kron(memory["A"], memory["G"]), torch.outer(g, g))


def test_the_sampled_error_signal_is_the_gradient_of_the_negative_log_likelihood():
    torch.manual_seed(0)
    z = torch.randn(6, 3, dtype=F64, requires_grad=True)
    D = LIKELIHOODS["categorical"](z.detach(), None)
    y = (z.softmax(1) - D).argmax(1)
    torch.testing.assert_close(D, torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)[0])
    D = LIKELIHOODS["bernoulli"](z.detach(), None)
    y = z.detach().sigmoid() - D
    assert set(y.round(decimals=9).flatten().tolist()) == {0.0, 1.0}
    loss = F.binary_cross_entropy_with_logits(z, y, reduction="sum")
    torch.testing.assert_close(D, torch.autograd.grad(loss, z)[0])


def test_equal_inputs_give_the_exact_fisher_matrix_of_the_last_layer():
    """(diag(p) - p p') x phi phi', from 200,000 draws: entries of at most 1/4, each to 5 standard errors."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 3)).to(F64)
    optimizer = KFAC(model)
    x = torch.tensor([[0.3, -1.2]], dtype=F64)
    with torch.no_grad():
        p, phi = model(x).softmax(1)[0], torch.cat([x[0], torch.ones(1)])
    model(x.expand(200_000, 2))
    memory = optimizer.state[model[0].weight]
    fisher = torch.kron(torch.outer(phi, phi), torch.diag(p) - torch.outer(p, p))
    torch.testing.assert_close(torch.kron(memory["A"], memory["G"]), fisher, rtol=0, atol=5 * 0.5 * 1.44 / 200_000**0.5)


def test_a_step_divides_the_mean_gradient_by_the_damped_product():
    """(A + pi sqrt(lam) I) x (G + sqrt(lam)/pi I), dense; with factors that remember two batches."""
    model, lam, m = net(), 0.3, 0.7
    optimizer = KFAC(model, 0.5, lam, m, inverse_every=1)
    factors: list[list[tuple[Tensor, Tensor]]] = []
    for x, y in (samples(5), samples(8)):
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        now = [optimizer.state[model[i].weight] for i in (0, 2)]
        factors.append([(memory["A"].clone(), memory["G"].clone()) for memory in now])
        loss.backward()
        optimizer.step()
        plain = F.cross_entropy(before(x), y)
        for i, (A, G) in zip((0, 2), factors[-1], strict=True):
            pi = (A.trace() / len(A) / (G.trace() / len(G))).sqrt()
            dense = torch.kron(
                A + pi * lam**0.5 * torch.eye(len(A), dtype=F64), G + lam**0.5 / pi * torch.eye(len(G), dtype=F64)
            )
            step = 0.5 * torch.linalg.solve(dense, gradient(plain, before[i]))
            torch.testing.assert_close(joint(model[i]), joint(before[i]) - step, rtol=1e-9, atol=1e-12)
    phi = torch.cat([samples(8)[0], torch.ones(8, 1)], 1)
    fresh, (old, new) = phi.T @ phi / 8, (pair[0][0] for pair in factors)
    torch.testing.assert_close(new, (m * old + fresh) / (m + 1))  # weights m (1 - m) and 1 - m, divided by their sum


def test_a_kernel_as_large_as_its_image_is_a_linear_layer():
    torch.manual_seed(4)
    conv, linear = nn.Conv2d(2, 3, (2, 3)).to(F64), nn.Linear(12, 3).to(F64)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)  # pyright: ignore
    x, y = torch.randn(6, 2, 2, 3, dtype=F64), torch.randint(3, (6,))
    for model, inputs in ((nn.Sequential(conv, nn.Flatten()), x), (nn.Sequential(linear), x.flatten(1))):
        torch.manual_seed(5)
        optimizer = KFAC(model)
        F.cross_entropy(model(inputs), y).backward()
        optimizer.step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight)
    torch.testing.assert_close(conv.bias, linear.bias)


def test_factors_of_a_convolution_are_sums_over_positions(monkeypatch: pytest.MonkeyPatch):
    """Equations 31 and 32 of Grosse & Martens: A sums over positions, G averages over them; two groups, two factors."""
    conv, drawn = nn.Conv2d(2, 4, 2, groups=2).to(F64), []
    monkeypatch.setitem(kfac.LIKELIHOODS, "gaussian", lambda z, g: drawn.append(torch.randn_like(z)) or drawn[-1])
    model = nn.Sequential(conv, nn.Flatten())
    optimizer = KFAC(model, likelihood="gaussian")
    x = torch.randn(6, 2, 4, 4, dtype=F64)
    model(x)
    memory = optimizer.state[conv.weight]
    for group in range(2):
        patches = F.unfold(x[:, group : group + 1], 2).mT.flatten(0, 1)
        phi = torch.cat([patches, torch.ones(54, 1)], 1)
        D = drawn[0].view(6, 4, 9)[:, 2 * group : 2 * group + 2].mT.flatten(0, 1)
        torch.testing.assert_close(memory["A"][group], phi.T @ phi / 6)
        torch.testing.assert_close(memory["G"][group], D.T @ D / 54)


def test_copies_and_removal_leave_no_sampling_behind():
    model = net()
    optimizer = KFAC(model)
    x, y = samples(4)
    twin = copy.deepcopy(model)
    twin(x)
    assert not optimizer.state
    other, again = copy.deepcopy((model, optimizer))
    F.cross_entropy(other(x), y).backward()
    again.step()
    assert sum("A" in memory for memory in again.state.values()) == 2
    assert not optimizer.state
    with torch.no_grad():
        model(x)
    with optimizer.paused():
        model(x)
    optimizer.remove()
    model(x)
    assert not optimizer.state
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"likelihood": "poisson"}, "Invalid likelihood: 'poisson'; choose one of categorical, bernoulli, gaussian"),
        ({"damping": 0.0}, "Invalid damping: 0.0; it has to be > 0"),
        ({"inverse_every": 0}, "Invalid inverse_every: 0"),
        ({"lr": -1.0}, "Invalid lr: -1.0"),
    ],
)
def test_invalid_options_are_refused_with_their_value(option, message):
    model = net()
    with pytest.raises(ValueError, match=f"^{message}"):
        KFAC(model, **option)
    assert not model._forward_hooks
