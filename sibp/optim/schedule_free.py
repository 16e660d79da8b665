"""Schedule-Free AdamW (Defazio et al., NeurIPS 2024, arXiv 2405.15682), from its authors' package schedulefree."""

import weakref
from typing import Any

import torch
from torch import nn

from sibp.optim.checks import check_settings, from_peers, refuse_float16


def build(model: nn.Module, *, lr: float, beta: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW without a schedule, with an average of the weights for evaluation.

    Gradients are computed at a point between the newest weights and their average. The package's optimizer has to be
    told which weights to use. Here the model's mode decides: a forward pass uses the average in `eval` mode and the
    point of the gradients in `train` mode.

    Args:
        model: the model.
        lr: step size after the warm-up.
        beta: weight of the average in the point of the gradients, 0.9 in the paper; > 0 and < 1.
        weight_decay: decoupled weight decay.

    Returns:
        The package's optimizer.

    Raises:
        ValueError: if the package is not installed, a setting is out of range, or weights are float16.
    """
    check_settings(lr=lr, weight_decay=weight_decay)
    if not 0 < beta < 1:
        raise ValueError(f"Invalid beta: {beta}; it has to be > 0 and < 1.")
    refuse_float16(model, "in which the 1e-8 that Adam adds to its roots rounds to 0")
    make = from_peers("schedulefree", "AdamWScheduleFree")
    optimizer = make(model.parameters(), lr, betas=(beta, 0.999), weight_decay=weight_decay)
    optimizer.train()
    model.register_forward_pre_hook(_Mode(optimizer))

    def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if model.training:  # the package checks its mode before it calls a closure, whose forward pass would set it
            optimizer.train()

    optimizer.register_step_pre_hook(before_step)
    return optimizer


class _Mode:
    """A forward hook that switches the weights to the model's mode; its copy in a copied model does nothing."""

    def __init__(self, optimizer: Any = None) -> None:
        self.optimizer = weakref.ref(optimizer) if optimizer is not None else lambda: None

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        del inputs
        optimizer = self.optimizer()
        if optimizer is not None:
            optimizer.train() if module.training else optimizer.eval()

    def __deepcopy__(self, memo: Any) -> "_Mode":
        return _Mode()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Mode, ()
