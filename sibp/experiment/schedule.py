"""The learning rate over a run: the same rule for every optimizer, as a pure function of the step.

So a resumed run needs no scheduler state, and overrides what the optimizer's checkpoint says.
"""

import math
from typing import Self

import torch

from sibp.experiment.settings import Settings
from sibp.runs.errors import UserError


def factor(shape: str, step: int, total: int, warmup: int) -> float:
    """The factor of the step size.

    Args:
        shape: constant, linear (down to 0) or cosine (half a wave, down to 0).
        step: counted from 0 over the whole run.
        total: steps of the whole run.
        warmup: initial steps over which the factor increases linearly; the shape follows them.

    Returns:
        A number above 0, at most 1.

    Example:
        >>> [factor("linear", step, 4, 0) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [factor("constant", step, 4, 2) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[shape]


class Schedule:
    """Sets an optimizer's learning rate before every step.

    ``decays="lr"`` multiplies the learning rate by the factor. ``decays="prox_weight"`` divides the proximal weight by
    it instead. Small steps are about lr / prox_weight times the gradient, so both shorten them equally, but with the
    latter the targets of the neurons keep their distance.

    Args:
        optimizer: with its initial learning rate and proximal weight, a number for each group.
        shape: one of ``settings.SHAPES``.
        decays: one of ``settings.DECAYS``.
        total: steps of the whole run.
        warmup: number of warm-up steps.

    Raises:
        UserError: the optimizer has no proximal weight.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shape: str, decays: str, total: int, warmup: int):
        self._optimizer, self._shape, self._decays, self._total, self._warmup = optimizer, shape, decays, total, warmup
        if any(decays not in group for group in optimizer.param_groups):
            raise UserError(f"decays={decays} is not possible: this optimizer has no {decays}; say decays=lr.")
        self._initial = [float(group[decays]) for group in optimizer.param_groups]

    @classmethod
    def of(cls, settings: Settings, optimizer: torch.optim.Optimizer, total: int) -> Self:
        """The schedule of a run: that of its optimizer's config, if it has one of its own.

        Args:
            settings: of the run.
            optimizer: as built from them.
            total: steps of the whole run.
        """
        own = settings.optimizer
        if own.get("schedule") is None:
            return cls(optimizer, settings.schedule, settings.decays, total, settings.warmup_steps)
        return cls(optimizer, own["schedule"], "lr", total, round((own.get("warmup") or 0.0) * total))

    def set(self, step: int) -> None:
        """Set the learning rate of one step.

        Args:
            step: counted from 0 over the whole run.
        """
        if self._shape == "constant" and self._warmup == 0:
            return
        scale = factor(self._shape, step, self._total, self._warmup)
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group[self._decays] = initial * scale if self._decays == "lr" else initial / scale
