"""The optimizers a config can name: an allow-list, so that a config never names code of its own."""

from typing import Any

import torch
from torch import nn

from sibp.experiment.settings import call_builder


def sgd(model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's stochastic gradient descent."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def adam(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's Adam."""
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)


def sibp(model: nn.Module, *, lr: float, prox_weight: float, solver: str) -> torch.optim.Optimizer:
    """Semi-implicit back propagation."""
    from sibp import SIBP

    return SIBP(model, lr=lr, prox_weight=prox_weight, solver=solver)


def proxbp(model: nn.Module, *, lr: float, prox_weight: float, solver: str) -> torch.optim.Optimizer:
    """Proximal back propagation."""
    from sibp import ProxBP

    return ProxBP(model, lr=lr, prox_weight=prox_weight, solver=solver)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "sibp": sibp, "proxbp": proxbp}


def build_optimizer(config: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that a config names.

    Args:
        config: the ``optimizer`` group: ``name`` and the builder's settings.
        model: whose parameters to train, already on its device.

    Returns:
        The optimizer.

    Raises:
        UserError: unknown optimizer or setting, or a value that it refuses.
    """
    return call_builder("optimizer", OPTIMIZERS, config, model)
