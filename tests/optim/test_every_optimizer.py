"""What a run needs of an optimizer, for every one that a config can name. A new one is a row of `ROWS`."""

from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp.experiment.compose import CONFIGS, compose
from sibp.experiment.data import Data, load_data
from sibp.experiment.models import build_model
from sibp.experiment.optimizers import build_optimizer
from sibp.runs.errors import UserError

BATCH, STEPS = 50, 150  # six epochs of the digits
F64 = torch.float64


@dataclass(frozen=True)
class Row:
    """An optimizer's config, and settings with which it learns the digits in six epochs.

    `batch` is what it is made for, `steps` as many as it gets; `linear`: it is for linear layers alone.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = BATCH
    steps: int = STEPS
    linear: bool = False

    def make(self, model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
        return build_optimizer(_config(self.config) | self.settings | changes, model)


ROWS = [
    Row("adagrad", {"lr": 0.05}),
    Row("adam", {"lr": 0.01}),
    Row("adam_cosine", {"lr": 0.01}),
    Row("adamw", {"lr": 0.01}),
    Row("adamw_cosine", {"lr": 0.01}),
    Row("aprox", {"lr": 1.0}),
    Row("bcd", linear=True),
    Row("dtp", {"lr": 0.005, "target_step": 0.33}, linear=True),
    Row("foof", {"damping": 10.0, "inverse_every": 10}),
    Row("kfac", {"lr": 0.03, "damping": 0.01}),
    Row("kfac_adaptive", {"lr": 0.1, "damping": 0.01, "clip": 0.01}),
    Row("lbfgs", {"line_search": False, "max_iter": 2}, batch=1297, steps=50),
    Row("locoprop_m", {"activation_lr": 0.1}),
    Row("locoprop_s", {"activation_lr": 0.1}),
    Row("muon", {"lr": 0.01}),
    Row("nesterov"),
    Row("prodigy", {"lr": 0.2}),
    Row("proxbp"),
    Row("proxbp_adam", {"lr": 0.01}),
    Row("proxbp_momentum"),
    Row("proxbp_muon", {"lr": 0.01}),
    Row("proxprop"),
    Row("proxprop_adam", {"lr": 0.01}),
    Row("rmsprop", {"lr": 0.003}),
    Row("schedule_free", {"lr": 0.01}),
    Row("sgd", {"momentum": 0.9}),
    Row("sibp"),
    Row("sibp_adam", {"lr": 0.01}),
    Row("sibp_auto"),
    Row("sibp_foof", {"damping": 10.0, "inverse_every": 10}),
    Row("sibp_growing"),
    Row("sibp_momentum"),
    Row("sibp_muon", {"lr": 0.01}),
    Row("sls"),
    Row("soap", {"lr": 0.01}),
]


@cache
def _config(name: str) -> dict[str, Any]:
    return compose([f"optimizer={name}"])["optimizer"]


@pytest.fixture(params=ROWS, ids=lambda row: row.config)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@cache
def digits() -> Data:
    return load_data({"name": "digits"}, "", False).prepared(True, torch.device("cpu"))


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    return build_model({"name": "mlp", "hidden": [24, 16]}, (1, 8, 8), 10, seed=0).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, batch: int = BATCH) -> list[float]:
    """Steps as in the training loop, after an evaluation, on batches that the step's number decides; their losses."""
    data, dtype = digits().train, next(model.parameters()).dtype
    losses = []
    accuracy(model)
    for step in steps:
        rows = torch.arange(step * batch, (step + 1) * batch) % len(data)
        x, y = data.inputs[rows].to(dtype), data.labels[rows]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())  # pyright: ignore
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def accuracy(model: nn.Module) -> float:
    data = digits().val
    model.eval()
    with torch.no_grad():
        outputs = model(data.inputs.to(next(model.parameters()).dtype))
    model.train()
    return (outputs.argmax(1) == data.labels).double().mean().item()


@cache
def accuracy_of_sgd() -> float:
    model = mlp()
    train(model, torch.optim.SGD(model.parameters(), 0.1, 0.9), range(STEPS))
    return accuracy(model)


def test_every_config_has_a_row():
    assert sorted(row.config for row in ROWS) == sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))


def test_learns_as_well_as_sgd(row: Row):
    """The bound is SGD's accuracy on 250 images after as many steps, less two standard errors of a difference."""
    torch.manual_seed(0)
    model = mlp()
    losses = train(model, row.make(model), range(row.steps), row.batch)
    sgd = accuracy_of_sgd()
    assert sgd > 0.9
    assert accuracy(model) > sgd - 2 * (2 * sgd * (1 - sgd) / 250) ** 0.5
    assert losses[0] == pytest.approx(2.3, abs=0.1)  # the loss before the step, as the loop logs it


def test_resumes_bitwise_from_a_file(row: Row, tmp_path):
    model, other = mlp(), mlp()
    torch.manual_seed(1)
    optimizer = row.make(model)
    train(model, optimizer, range(4))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    torch.save(state, tmp_path / "c.pt")
    train(model, optimizer, range(4, 8))
    again = row.make(other, lr=0.77)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    train(other, again, range(4, 8))
    for p, q in zip(weights(model), weights(other), strict=True):
        assert torch.equal(p, q)


def test_the_learning_rate_scales_the_whole_step(row: Row):
    """A schedule of `lr` reaches all that moves: at 0 nothing does, and back at the old rate all of it."""
    model = mlp()
    optimizer = row.make(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = weights(model)
    train(model, optimizer, range(3))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    train(model, optimizer, range(3, 6))
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_schedulers_work(row: Row):
    model = mlp()
    optimizer = row.make(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    for step in range(4):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [rate * (0.1 + 0.225 * step) for rate in rates]
        )
        train(model, optimizer, range(step, step + 1))
        schedule.step()


def test_double_precision_is_preserved(row: Row):
    model = mlp(F64)
    losses = train(model, row.make(model), range(row.steps // 4), row.batch)
    assert all(p.dtype == F64 for p in model.parameters())
    assert losses[-1] < losses[0]


def test_trains_a_convolutional_network_or_names_the_supported_layers(row: Row):
    """With more patches than weights in a neuron, batch norm, and an activation in place."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(),
        nn.Linear(12, 10),
    )  # fmt: skip
    if row.linear:
        with pytest.raises(UserError, match=r"layer '1' \(Conv2d\): .* is for networks of linear layers"):
            row.make(model)
        return
    losses = train(model, row.make(model), range(row.steps // 2), row.batch)
    assert median(losses[-9:]) < 0.8 * losses[0]  # the median, as momentum's long steps make single batches noisy


def test_an_invalid_learning_rate_is_refused_in_one_sentence(row: Row):
    with pytest.raises(UserError, match=f"optimizer={_config(row.config)['name']} cannot be built: .*-0.1"):
        row.make(mlp(), lr=-0.1)
