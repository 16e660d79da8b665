"""Refusing, in one clear sentence, what cannot work."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter


def check_group(group: dict[str, Any]) -> tuple[float, float]:
    """The step and the proximal weight of a group, as numbers.

    Args:
        group: with "lr" (a number or a 0-dimensional tensor), "prox_weight" and "weight_decay".

    Returns:
        (lr, prox_weight), that is (eta, lam).

    Raises:
        ValueError: if one is out of its range.
    """
    lr, prox_weight, weight_decay = (_number(group, key) for key in ("lr", "prox_weight", "weight_decay"))
    if not 0 <= lr < math.inf:
        raise ValueError(f"Invalid lr: {group['lr']}; the step on the neurons (eta) has to be >= 0 and finite.")
    if not 0 < prox_weight < math.inf:
        raise ValueError(
            f"Invalid prox_weight: {group['prox_weight']}; the proximal weight (lam) has to be > 0 and finite."
        )
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"Invalid weight_decay: {group['weight_decay']}; it has to be >= 0 and finite.")
    return lr, prox_weight


def in_range(
    group: dict[str, Any], key: str, low: float, high: float = math.inf, *, open_at_low: bool = False
) -> float:
    """A setting of a group, as a number from `low` (without it, if `open_at_low`) to below `high`.

    Args:
        group: with the key.
        key: of the setting.
        low: smallest value.
        high: what it has to stay below.
        open_at_low: whether `low` itself is out.

    Raises:
        ValueError: if it is not in there.
    """
    value = _number(group, key)
    if not (low < value < high or (value == low and not open_at_low)):
        upper = "finite" if high == math.inf else f"< {high:g}"
        sign = ">" if open_at_low else ">="
        raise ValueError(f"Invalid {key}: {group[key]}; it has to be {sign} {low:g} and {upper}.")
    return value


def whole(group: dict[str, Any], key: str, least: int = 1) -> int:
    """A setting of a group, as a whole number of `least` or more.

    Args:
        group: with the key.
        key: of the setting.
        least: smallest value.

    Raises:
        ValueError: if it is not that.
    """
    value = group[key]
    if type(value) is not int or value < least:
        raise ValueError(f"Invalid {key}: {value!r}; it has to be a whole number of {least} or more.")
    return value


def check_settings(**settings: float) -> None:
    """Refuses settings of torch's own optimizers that are out of their range; torch itself lets NaN pass.

    Args:
        settings: by name: what is a share of the past (momentum, decay, ...) from 0 to below 1, all else 0 or more.

    Raises:
        ValueError: if one is out of its range.
    """
    for key in settings:
        in_range(settings, key, 0, 1 if key in ("momentum", "decay", "beta1", "beta2") else math.inf)


def refuse_float16(model: nn.Module, reason: str) -> None:
    """Refuses a model with float16 weights.

    Args:
        model: to be optimized.
        reason: why the method cannot train it.

    Raises:
        ValueError: if a parameter is float16.
    """
    for name, p in model.named_parameters():
        if p.dtype is torch.float16:
            raise ValueError(f"{name} is float16, {reason}; use bfloat16 or float32.")


def _number(group: dict[str, Any], key: str) -> float:
    value = group[key]
    if isinstance(value, bool) or not isinstance(value, int | float | torch.Tensor):
        raise ValueError(f"Invalid {key}: {value!r}; it has to be a number.")
    return float(value)


def check_names(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """The names, if all are modules of the model.

    Args:
        model: to be optimized.
        names: given by the user.

    Raises:
        ValueError: if there is no such module.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = {name for name, _ in model.named_modules()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 3) or sorted(known)[:5]
            raise ValueError(f"Invalid explicit: the model has no module {name!r}; near it are {', '.join(near)}.")
    return names


def check_real(name: str, params: Iterable[nn.Parameter], method: str) -> None:
    """Refuses a layer with complex parameters.

    Args:
        name: the layer's.
        params: its parameters.
        method: name of the optimizer, for the message.

    Raises:
        TypeError: if one is complex.
    """
    if any(p.is_complex() for p in params):
        raise TypeError(
            f"{method}: layer '{name}' has complex parameters, and layers are solved in real numbers only; leave it to "
            f"the fallback optimizer with explicit=['{name}']."
        )


def check_model(model: nn.Module, method: str) -> None:
    """Refuses what cannot be tapped.

    Args:
        model: to be optimized.
        method: name of the optimizer, for the message.

    Raises:
        TypeError: if it is not an `nn.Module`, or is one that runs elsewhere than in its own `forward`s.
        ValueError: if a lazy module has not been run yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{method} takes the model itself, not {type(model).__name__}: {method}(model, ...). "
            "To train a part of it, add params=part.parameters()."
        )
    for name, module in model.named_modules():
        here = f"layer '{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{method}: {here} is a TorchScript module, whose layers cannot be tapped; pass the original."
            )
        if getattr(module, "_orig_mod", None) is not None or module._compiled_call_impl is not None:
            raise TypeError(f"{method}: {here} is compiled, and compiled layers cannot be tapped; pass the original.")
        if isinstance(module, nn.DataParallel):
            raise TypeError(
                f"{method}: {here} copies its layers for every step; pass the module inside, on one device."
            )
        if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
            raise ValueError(f"{method}: {here} is lazy and has no weights yet; run the model once before.")
