"""Small runs for the tests of the experiment side."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Config = dict[str, Any]
OPTIMIZERS: dict[str, Config] = {
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "adam": {"name": "adam", "lr": 0.01, "weight_decay": 0.0},
    "sibp": {"name": "sibp", "lr": 0.3, "prox_weight": 1.0, "solver": "cg:3"},
    "proxbp": {"name": "proxbp", "lr": 0.3, "prox_weight": 3.0, "solver": "exact"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A function that gives the settings of a run of 20 steps on the digits, with changes."""

    def make(optimizer: str = "sgd", **changes: Any) -> Config:
        config = {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "hidden": [16], "init": "default", "init_std": None},
            "optimizer": dict(OPTIMIZERS[optimizer]),
            "batch_size": 50,
            "epochs": None,
            "max_steps": 20,
            "seed": 0,
            "schedule": "constant",
            "decays": "lr",
            "warmup_steps": 0,
            "label_noise": 0.0,
            "log_every": 4,
            "checkpoint_every": 5,
            "eval_train_limit": 200,
            "target_val_acc": 0.5,
            "plugins": [],
            "evaluate_test": True,
            "device": "cpu",
            "threads": 1,
            "data_root": str(tmp_path / "data"),
            "run_root": str(tmp_path / "runs"),
            "download": False,
            "force": False,
            "progress": False,
            "tensorboard": False,
            "histograms": False,
        }
        return config | changes

    return make
