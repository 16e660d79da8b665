"""Prodigy (Mishchenko & Defazio, ICML 2024, arXiv 2306.06101), from the package pytorch_optimizer."""

import torch
from torch import nn

from sibp.optim.checks import check_settings, from_peers, refuse_float16


def build(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam whose step size is estimated from the distance to the initial weights.

    Args:
        model: the model.
        lr: multiple of the estimated step size, 1 in the paper.
        weight_decay: decoupled weight decay.

    Returns:
        The package's optimizer.

    Raises:
        ValueError: if the package is not installed, a setting is out of range, or weights are float16.
    """
    check_settings(lr=lr, weight_decay=weight_decay)
    refuse_float16(model, "in which Prodigy's running means, at first a millionth of the gradient, round to 0")
    return from_peers("pytorch_optimizer", "Prodigy")(model.parameters(), lr, weight_decay=weight_decay)
