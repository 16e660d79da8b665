"""Clear errors for models that do not fit into memory."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from sibp.runs.errors import UserError

# In float32: weights, gradients, and the copy of the weights for a run's untimed first step.
BYTES_PER_WEIGHT = 3 * 4
OF_ALLOCATORS = (
    "DefaultCPUAllocator",
    "out of memory",
    "Storage size calculation overflowed",
    "multiplication overflow",
)


def check_fits(weights: int, model: str, **settings: Any) -> None:
    """Refuse a model whose training needs more memory than this machine has.

    Args:
        weights: number of parameters.
        model: its name.
        **settings: those that determine its size.

    Raises:
        UserError: it does not fit; names the settings.
    """
    needed, there = weights * BYTES_PER_WEIGHT, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"model={model} with {_named(settings)} has {weights:.3g} weights: training takes {needed / 1e9:.3g} "
            f"GB of memory or more, and this machine has {there / 1e9:.3g} GB: give a smaller model."
        )


def sizes_of(model: Mapping[str, Any]) -> str:
    """The settings of a model that are numbers.

    Args:
        model: the group.

    Returns:
        Such as "model.channels=3, model.depth=2"; empty if there are none.
    """
    return _named({key: value for key, value in model.items() if type(value) in (int, list)})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of torch or of Python, is about memory.

    Args:
        error: any.

    Returns:
        True for errors of CPU and accelerator allocators, and for sizes beyond any memory.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(t in str(error) for t in OF_ALLOCATORS)


def _named(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"model.{key}={value}".replace(" ", "") for key, value in settings.items())
