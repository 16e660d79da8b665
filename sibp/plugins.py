"""What a module of your own imports to be found by ``plugins=[my_module]``.

Its functions put an optimizer, a model, a data set or an activation into the same tables that hold the project's own;
configs then name it like those.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sibp.experiment.data import DATASETS, Data, Split, digest
from sibp.experiment.models import ACTIVATIONS, MODELS, ModelSpec
from sibp.experiment.objectives import CLASSIFICATION, RECONSTRUCTION, Objective
from sibp.experiment.optimizers import OPTIMIZERS
from sibp.experiment.settings import register

__all__ = [
    "CLASSIFICATION",
    "RECONSTRUCTION",
    "Data",
    "Objective",
    "Split",
    "digest",
    "name_activation",
    "register_dataset",
    "register_model",
    "register_optimizer",
]


def register_optimizer(name: str, build: Callable[..., torch.optim.Optimizer]) -> None:
    """Make an optimizer known as ``optimizer.name``.

    Args:
        name: as configs will say it.
        build: ``build(model, *, lr, ...)``; its keyword arguments are the settings, checked by their annotations.

    Raises:
        ValueError: the name is taken.
    """
    register("optimizer", OPTIMIZERS, name, build)


def register_model(
    name: str, build: Callable[..., nn.Module], *, flat: bool, objective: Objective = CLASSIFICATION
) -> None:
    """Make a model known as ``model.name``.

    Args:
        name: as configs will say it.
        build: ``build(shape, classes, **settings)``; shape is one image's, (channels, height, width).
        flat: the model takes images as vectors, (B, pixels).
        objective: what it is trained for: ``CLASSIFICATION`` or ``RECONSTRUCTION``.

    Raises:
        ValueError: the name is taken.
    """
    register("model", MODELS, name, ModelSpec(build, flat, objective))


def register_dataset(name: str, build: Callable[[Path, bool], Data]) -> None:
    """Make a data set known as ``dataset.name``.

    Args:
        name: as configs will say it.
        build: ``build(data_root, download)``; answers all three parts, which no run's seed may move.

    Raises:
        ValueError: the name is taken.
    """
    register("dataset", DATASETS, name, build)


def name_activation(name: str, kind: type[nn.Module]) -> None:
    """Make an activation known as ``model.activation``.

    Whether a layer's subproblem can contain it is another matter: `sibp.register_activation` sees to that.

    Args:
        name: as configs will say it.
        kind: a class of modules, made without arguments.

    Raises:
        ValueError: the name is taken.
    """
    register("activation", ACTIVATIONS, name, kind)
