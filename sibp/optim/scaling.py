"""Refuses a GradScaler: the subproblems of a scaled loss have wrong targets, which unscaling cannot undo."""

import sys
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

_WITHOUT = "Train without a scaler, in bfloat16 (torch.autocast(dtype=torch.bfloat16)) or in float32."
_CALLERS = 8  # number of stack frames above a step that are searched for a scaler
_SCALER_MODULE = torch.amp.GradScaler.__module__


def _is_read_by_scaler(optimizer: object) -> bool:
    """Whether the caller that reads the property is a GradScaler."""
    del optimizer
    return sys._getframe(1).f_globals.get("__name__") == _SCALER_MODULE


step_supports_amp_scaling = property(_is_read_by_scaler)
"""An optimizer's `_step_supports_amp_scaling`.

A GradScaler that reads True passes its scale to `step` instead of dividing `.grad`, so `refuse_scaling` can raise. All
other readers get False: frameworks refuse to clip gradients where it is True, even in bfloat16.
"""


def refuse_scaling(optimizer: torch.optim.Optimizer, method: str) -> None:
    """Refuses to step inside `GradScaler.step`.

    Args:
        optimizer: an optimizer with `_step_supports_amp_scaling`, so that a scaler passes its scale to the step.
        method: the optimizer's name.

    Raises:
        RuntimeError: if a scaler calls the step.
    """
    if hasattr(optimizer, "found_inf"):
        # The scaler sets these attributes for its call of `step`, and does not delete them if `step` raises. If they
        # remained, the next step would look like one inside a scaler.
        for name in ("found_inf", "grad_scale"):
            delattr(optimizer, name)
        raise RuntimeError(
            f"{method} cannot undo the scale of a GradScaler, as displacements are not linear in the loss. {_WITHOUT}"
        )


class ScalerGuard:
    """Refuses a GradScaler around another optimizer that applies a direction's displacements.

    The scaler would silently divide the displacements by its scale, although they are not linear in the loss. A hook
    before the steps of all torch optimizers raises RuntimeError in that case.

    Args:
        direction: the optimizer with `direction_only`; only a weak reference is kept.
    """

    def __init__(self, direction: Any) -> None:
        global _registered
        if not _registered:
            # The hook is never removed. Removing it with its direction would fail: the garbage collector may free a
            # direction while torch iterates over these hooks.
            register_optimizer_step_pre_hook(_before_any_step)
            _registered = True
        self._direction = weakref.ref(direction)
        _directions.add(direction)

    def remove(self) -> None:
        """Ends the guard."""
        _directions.discard(self._direction())


_directions: "weakref.WeakSet[Any]" = weakref.WeakSet()
_registered = False


def _before_any_step(outer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError if a scaler steps an optimizer along displacements."""
    del args, kwargs
    if torch.compiler.is_compiling():  # a compiled step is never inside `GradScaler.step`; frames cannot be traced
        return
    if not _directions or not _called_by_scaler():
        return
    stepped = {id(p) for group in outer.param_groups for p in group["params"]}
    for direction in _directions:
        if any(id(p) in stepped for tap in direction.layers for p in tap.parameters.values()):
            raise RuntimeError(
                f"{type(outer).__name__} steps along displacements of {type(direction).__name__}, whose scale a "
                f"GradScaler cannot remove. {_WITHOUT}"
            )


def _called_by_scaler() -> bool:
    """Whether an enabled GradScaler is among the callers of the step; schedulers and wrappers may stand between."""
    frame: Any = sys._getframe(2)
    for _ in range(_CALLERS):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == _SCALER_MODULE:
            return frame.f_locals["self"].is_enabled()
        frame = frame.f_back
    return False
