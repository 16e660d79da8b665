"""Muon beside AdamW: which parameters get which, and steps that apply the polynomial to singular values."""

import numpy as np
import pytest
import torch
from torch import nn

from sibp.optim import muon
from sibp.optim.combined import CombinedOptimizer
from sibp.optim.muon import Muon, build

F64 = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)
    return nn.Sequential(*layers).to(F64)


def backward(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randn(6, 1, 5, 5, generator=generator, dtype=F64)).square().mean().backward()


def test_only_the_inner_matrices_are_orthogonalised():
    model, twin = net(), net()
    optimizer = build(model, lr=0.1, momentum=0.9, weight_decay=0.01)
    inner, rest = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in inner] == [id(model[3].weight)]
    assert len(rest) == len(list(model.parameters())) - 1
    adamw = torch.optim.AdamW([p for name, p in twin.named_parameters() if name != "3.weight"], 0.1, weight_decay=0.01)
    backward(model)
    backward(twin)
    optimizer.step()
    adamw.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q) == (name != "3.weight")


@pytest.mark.parametrize("fast", [True, False])
def test_a_step_applies_the_polynomial_to_the_singular_values(monkeypatch, fast):
    """3.4445 x - 4.775 x^3 + 2.0315 x^5, five times; computed in bfloat16, where it is fast, to two or three digits."""
    monkeypatch.setattr(muon, "_multiplies_bfloat16", lambda device: fast)
    model = net()
    optimizer = build(model, lr=0.1, momentum=0.8, weight_decay=0.0)
    W, mean = model[3].weight, np.zeros((9, 18))
    for seed in (1, 2):
        g = np.random.default_rng(seed).normal(size=(9, 18))
        W.grad, before = torch.tensor(g), W.detach().numpy().copy()
        optimizer.step()
        mean = 0.8 * mean + g
        U, s, V = np.linalg.svd(g + 0.8 * mean, full_matrices=False)
        s /= np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        expected = 0.1 * 0.2 * np.sqrt(18) * (U * s) @ V
        difference = np.linalg.norm(before - W.detach().numpy() - expected) / np.linalg.norm(expected)
        assert difference < (0.02 if fast else 1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has a Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 4)])
def test_steps_equal_torchs_muon_bitwise(monkeypatch, shape):
    monkeypatch.setattr(muon, "_multiplies_bfloat16", lambda device: True)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.ones(shape))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"lr": float("nan")}, {"momentum": 1.0}, {"weight_decay": -0.1}])
def test_invalid_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"Invalid {name}"):
        build(net(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, **wrong})


def test_a_network_without_inner_matrices_is_refused():
    with pytest.raises(ValueError, match="except the last one, but the model has no others"):
        build(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)), lr=0.1, momentum=0.9, weight_decay=0.0)


def test_parts_without_a_closure_also_step():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    both = CombinedOptimizer([torch.optim.SGD([a], lr=0.5), torch.optim.SGD([b], lr=0.25)])
    (a + b).backward()
    assert both.step() is None
    assert (a.item(), b.item()) == (0.5, 0.75)
