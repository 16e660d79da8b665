"""The script on stationary points: its metrics against plain autograd and brute force."""

import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def stationary():
    spec = importlib.util.spec_from_file_location("stationary", PROJECT / "scripts" / "stationary.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_away_from_kinks_the_subgradient_is_the_gradient(stationary):
    x, y = stationary.crowd(0)
    model = stationary.network((2, 3, 3), "relu", 0)
    expected = torch.cat([g.ravel() for g in torch.autograd.grad(stationary.loss_of(model, x, y), model.parameters())])
    before = stationary.position(model)
    found = stationary.at_kinks(model, x, y)
    assert found["near"] == 0
    assert found["subgradient"] == pytest.approx(expected.norm().item(), rel=1e-12)
    assert found["falls"] > 1e-3
    assert torch.equal(stationary.position(model), before)


@pytest.mark.parametrize("outputs", [[[1.0], [-1.0]], [[-1.0], [1.0]], [[3.0], [-0.5]]])
@pytest.mark.parametrize(("weight", "points"), [(0.0, [1.0, -2.0, 0.5]), (1.0, [0.0, 0.0, 2.0])])
def test_at_kinks_the_least_subgradient_is_that_of_brute_force(stationary, outputs, weight, points):
    """One hidden neuron; samples are at its kink: all, as its weight is zero, or two of which only its bias hears."""
    model = stationary.network((1, 1, 2), "relu", 0)
    x, y = torch.tensor(points)[:, None], torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2]])
    with torch.no_grad():
        model[0].weight.fill_(weight), model[0].bias.zero_(), model[2].weight.copy_(torch.tensor(outputs))
        D, Z = model(x).softmax(1) - y, model[0](x)[:, 0]
    D_hidden = (D @ model[2].weight.detach())[:, 0]
    top = D.sum(0).square().sum() + (D.T @ Z.relu()).square().sum()
    axes = [torch.linspace(0, 1, 41).tolist() if z == 0 else [1.0] for z in Z.tolist()]
    of_hidden = torch.tensor(list(itertools.product(*axes))) @ (D_hidden[:, None] * torch.cat([x, torch.ones(3, 1)], 1))
    least = (of_hidden.square().sum(1).min() + top).sqrt().item()
    found = stationary.at_kinks(model, x, y)
    assert found["near"] == sum(z == 0 for z in Z.tolist())
    assert found["subgradient"] == pytest.approx(least, abs=0.02)
    assert found["subgradient"] <= least + 1e-12


def test_a_run_is_described_relative_to_its_start(stationary):
    x, y = stationary.points(0)
    model = stationary.network((4, 10, 10, 3), "tanh", 0)
    start = stationary.gradient(model, x, y).norm().item()
    row = stationary.run("sibp exact", model, x, y, 20)
    assert row["steps"] == 20
    assert row["first_gradient"] == pytest.approx(start)
    assert row["gradient"] == pytest.approx(stationary.gradient(model, x, y).norm().item() / start)
    assert row["path"][0] == [0, 1.0, 1.0]
    assert 0 < row["moved"] < 1
    assert all("forward" not in vars(layer) for layer in model if isinstance(layer, nn.Linear))  # taps are gone


def test_labels_are_probabilities(stationary):
    for make, sizes in stationary.PROBLEMS.values():
        x, y = make(0)
        assert x.shape == (len(y), sizes[0])
        assert y.shape[1] == sizes[-1]
        torch.testing.assert_close(y.sum(1), torch.ones(len(y)))


def test_kept_files_match_the_script(stationary):
    kept = json.loads((PROJECT / "results" / "stationary" / "limits.json").read_text())
    count = sum(len(kept[key]) for key in ("tanh", "relu", "wandering"))
    methods = len(stationary.METHODS)
    assert count == len(stationary.PROBLEMS) * len(stationary.SEEDS) * (2 * methods - 1)  # one is for ReLU alone
    assert all(row["moved"] <= stationary.REST for row in kept["tanh"] + kept["relu"])
    assert all(row["moved"] > stationary.REST for row in kept["wandering"])
    assert all(math.isfinite(row["gradient"]) for row in kept["tanh"] + kept["relu"])
    assert all(row["gradient"] <= stationary.FOUND for row in kept["stays"])
    assert kept["settings"]["eta"] == stationary.ETA
