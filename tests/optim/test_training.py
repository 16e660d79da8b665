"""Networks that people use, trained end to end on real digits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sibp import SIBP, ProxBP
from sibp.experiment.data import load_data
from sibp.experiment.models import MODELS, build_model

STEPS, BATCH = 36, 36


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


@pytest.mark.parametrize("name", ["lenet", "resnet8", "proxprop_convnet"])
@pytest.mark.parametrize(
    "make", [lambda m: SIBP(m, 0.5, 1.0, "cg:3"), lambda m: SIBP(m, 0.5, 1.0, "exact"), lambda m: ProxBP(m, 0.5, 1.0)]
)
def test_networks_improve_within_one_epoch(name: str, make):
    data = load_data({"name": "digits"}, "", False)
    model = build_model({"name": name}, data.shape, data.classes, seed=0)
    before = accuracy(model, data.val.inputs, data.val.labels)
    optimizer = make(model)
    for step in range(STEPS):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.inputs[batch]), data.train.labels[batch]).backward()
        optimizer.step()
    after = accuracy(model, data.val.inputs, data.val.labels)
    assert before < 0.25
    assert after > 0.8
    assert all(stats["status"] == 0 for stats in optimizer.solver_stats().values())


def test_every_convnet_of_the_configs_is_tapped_layer_by_layer():
    for name, spec in MODELS.items():
        if name == "transformer":  # reads characters, not images
            continue
        settings = {"mlp": {"hidden": [8]}, "autoencoder": {"hidden": [8], "activation": "tanh"}}.get(name, {})
        model = spec.build((1, 8, 8), 10, **settings)
        optimizer = SIBP(model)
        kinds = [line.split()[1:] for line in optimizer.summary().splitlines()[3:]]
        for kind, *_, update in kinds:
            assert update == ("explicit" if kind == "BatchNorm2d" else "proximal"), (name, kind)
