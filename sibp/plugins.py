"""What your module imports in order to be used by ``plugins=[my_module]``.

These functions add an optimizer, a model, a data set or an activation to the same tables as the project's own; configs
then refer to it by name.
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
    """Register an optimizer as ``optimizer.name``.

    Args:
        name: as used in configs.
        build: ``build(model, *, lr, ...)``; its keyword arguments are the settings, checked by their annotations.

    Raises:
        ValueError: the name is taken.
    """
    register("optimizer", OPTIMIZERS, name, build)


def register_model(
    name: str, build: Callable[..., nn.Module], *, flat: bool, objective: Objective = CLASSIFICATION
) -> None:
    """Register a model as ``model.name``.

    Args:
        name: as used in configs.
        build: ``build(shape, classes, **settings)``; shape is one image's, (channels, height, width).
        flat: whether the model takes flattened images, (B, pixels).
        objective: ``CLASSIFICATION`` or ``RECONSTRUCTION``.

    Raises:
        ValueError: the name is taken.
    """
    register("model", MODELS, name, ModelSpec(build, flat, objective))


def register_dataset(name: str, build: Callable[[Path, bool], Data]) -> None:
    """Register a data set as ``dataset.name``.

    Args:
        name: as used in configs.
        build: ``build(data_root, download)``; returns all three splits, independent of any run's seed.

    Raises:
        ValueError: the name is taken.
    """
    register("dataset", DATASETS, name, build)


def name_activation(name: str, kind: type[nn.Module]) -> None:
    """Register an activation as ``model.activation``.

    To make it part of a layer's subproblem as well, use `sibp.register_activation`.

    Args:
        name: as used in configs.
        kind: a module class, constructed without arguments.

    Raises:
        ValueError: the name is taken.
    """
    register("activation", ACTIVATIONS, name, kind)
