"""The built-in optimizers: an allow-list, so that a config cannot name arbitrary code.

This file has torch's optimizers, and those that use a proximal direction. Any other is a file in `sibp.optim` with a
function ``build(model, *, lr, ...)``; configs refer to it by the file's name.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import sibp.optim
from sibp.experiment.settings import call_builder, check_own_schedule
from sibp.optim import SIBP, Preconditioned, ProxBP, muon
from sibp.optim.base import TappedOptimizer
from sibp.optim.checks import check_settings, refuse_float16, whole
from sibp.optim.solvers import MAX_ITERATIONS


def sgd(model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's stochastic gradient descent."""
    check_settings(lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def adam(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's Adam."""
    check_settings(lr=lr, weight_decay=weight_decay)
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)


def nesterov(model: nn.Module, *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's SGD with Nesterov momentum, as a separate method in comparisons.

    With momentum 0, which a sweep may reach, it is plain SGD; torch would refuse the combination.
    """
    return sgd(model, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay)


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's AdamW: Adam with decoupled weight decay."""
    check_settings(lr=lr, weight_decay=weight_decay)
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


def rmsprop(
    model: nn.Module, *, lr: float, decay: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Torch's RMSprop; `decay` is torch's alpha."""
    check_settings(lr=lr, decay=decay, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.RMSprop(model.parameters(), lr=lr, alpha=decay, momentum=momentum, weight_decay=weight_decay)


def adagrad(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's Adagrad."""
    check_settings(lr=lr, weight_decay=weight_decay)
    return torch.optim.Adagrad(model.parameters(), lr=lr, weight_decay=weight_decay)


def lbfgs(model: nn.Module, *, lr: float, max_iter: int, history: int, line_search: bool) -> torch.optim.Optimizer:
    """Torch's L-BFGS, for full batches: a step takes up to `max_iter` iterations, each with one pass or more.

    With `line_search`, step lengths satisfy the strong Wolfe conditions; without, `lr` is the step length.

    Raises:
        ValueError: `max_iter` or `history` is below 1, or too large to be practical.
    """
    check_settings(lr=lr)
    refuse_float16(model, "in which the curvature of L-BFGS overflows")
    counts = {"max_iter": max_iter, "history": history}
    for key in counts:
        whole(counts, key, MAX_ITERATIONS)
    search = "strong_wolfe" if line_search else None
    return torch.optim.LBFGS(model.parameters(), lr, max_iter, history_size=history, line_search_fn=search)


OUTERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": nesterov,
    "adam": adamw,
    "adagrad": adagrad,
    "muon": muon.build,
}
"""The outer optimizers that can use a direction as their gradient, by their names in configs."""


def fed(direction: Callable[[nn.Module, float, float, str], TappedOptimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A builder of `Preconditioned`: one direction, inside the outer optimizer named in the config.

    Args:
        direction: builds it from the model, the step on the neurons, the proximal weight and the solver.
    """

    def build(
        model: nn.Module,
        *,
        lr: float,
        outer: str,
        momentum: float,
        weight_decay: float,
        neuron_step: float,
        prox_weight: float,
        solver: str,
    ) -> torch.optim.Optimizer:
        """The direction in an optimizer of `OUTERS`, which gets those of lr, momentum and weight_decay that it takes.

        Weight decay is added to the direction before the momentum in SGD and in Adagrad, decoupled in the others.

        Raises:
            ValueError: `outer` is not known, or a setting is out of range.
        """
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        check_settings(**settings)
        if outer not in OUTERS:
            raise ValueError(f"outer={outer} is not known; choose {', '.join(OUTERS)}")
        make = OUTERS[outer]
        taken = {key: value for key, value in settings.items() if key in inspect.signature(make).parameters}
        return Preconditioned(direction(model, neuron_step, prox_weight, solver), lambda _: make(model, **taken))

    return build


def proxprop(model: nn.Module, neuron_step: float, prox_weight: float, solver: str) -> ProxBP:
    """ProxBP's direction as its authors use it.

    The step on the neurons is `neuron_step` times the gradient of the mean loss (not of the sum), and the last layer
    gets its ordinary gradient (Frerix et al. 2018, arXiv 1706.04638).

    Raises:
        ValueError: the model has only one layer.
    """
    layers = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if len(layers) < 2:
        raise ValueError("the model has one layer only, and proxprop leaves the last one to the outer optimizer")
    return ProxBP(model, neuron_step, prox_weight, solver, loss_average=False, explicit=layers[-1:])


def _find_builders() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """``{file name: its build function}`` for every file of `sibp.optim` that has one."""
    names = [module.name for module in pkgutil.iter_modules(sibp.optim.__path__)]
    modules = {name: importlib.import_module(f"sibp.optim.{name}") for name in names}
    return {name: module.build for name, module in modules.items() if hasattr(module, "build")}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "nesterov": nesterov,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "lbfgs": lbfgs,
    "sibp_fed": fed(SIBP),
    "proxbp_fed": fed(ProxBP),
    "proxprop": fed(proxprop),
    **_find_builders(),
}


OF_SCHEDULE = ("schedule", "warmup")


def build_optimizer(config: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Build a config's optimizer.

    Args:
        config: the ``optimizer`` group: ``name`` and the builder's settings; ``schedule`` and ``warmup``, if given, are
            for the training loop.
        model: whose parameters to train, already on its device.

    Returns:
        The optimizer.

    Raises:
        UserError: unknown optimizer or setting, or an invalid value.
    """
    check_own_schedule(config)
    return call_builder("optimizer", OPTIMIZERS, {k: v for k, v in config.items() if k not in OF_SCHEDULE}, model)
