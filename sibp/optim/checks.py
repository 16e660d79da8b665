"""Checks of arguments, each with a one-sentence error."""

import difflib
import fnmatch
import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

_LARGEST_COUNT = 2**53
"""Up to this, float64 represents every whole number exactly."""


def check_group(group: dict[str, Any]) -> tuple[float, float]:
    """Checks the learning rate, the proximal weight and the weight decay of a group; returns the first two.

    Args:
        group: with "lr", "prox_weight" and "weight_decay", each a number or a tensor of one element.

    Returns:
        (lr, prox_weight), that is (eta, lam).

    Raises:
        ValueError: if one is out of its range.
    """
    lr, prox_weight = _number(group, "lr"), _number(group, "prox_weight")
    weight_decay = _number(group, "weight_decay")
    if not 0 <= lr < math.inf:
        raise ValueError(f"Invalid lr: {group['lr']}; the step on the neurons (eta) has to be >= 0 and finite.")
    if not 0 < prox_weight < math.inf:
        raise ValueError(
            f"Invalid prox_weight: {group['prox_weight']}; the proximal weight (lam) has to be > 0 and finite."
        )
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"Invalid weight_decay: {group['weight_decay']}; it has to be >= 0 and finite.")
    return lr, prox_weight


def one_of(group: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """A setting of a group that must be one of several names.

    Args:
        group: the param group.
        key: the setting.
        choices: the names.

    Raises:
        ValueError: if the setting is none of them.
    """
    if group[key] not in choices:
        raise ValueError(f"Invalid {key}: {group[key]!r}; choose one of {', '.join(map(repr, choices))}.")
    return group[key]


def in_range(
    group: dict[str, Any], key: str, low: float, high: float = math.inf, *, open_at_low: bool = False
) -> float:
    """A setting of a group, as a number in [low, high), or in (low, high) if `open_at_low`.

    Args:
        group: the param group.
        key: the setting.
        low: the lower end of the range.
        high: the upper end, excluded.
        open_at_low: whether `low` is excluded, too.

    Raises:
        ValueError: if the setting is out of range.
    """
    value = _number(group, key)
    if not (low < value < high or (value == low and not open_at_low)):
        upper = "finite" if high == math.inf else f"< {high:g}"
        sign = ">" if open_at_low else ">="
        raise ValueError(f"Invalid {key}: {group[key]}; it has to be {sign} {low:g} and {upper}.")
    return value


def whole(group: dict[str, Any], key: str, most: int | None = None) -> int:
    """A setting of a group, as a whole number from 1 to `most`.

    Args:
        group: the param group.
        key: the setting.
        most: the largest value; None if there is none.

    Raises:
        ValueError: if the setting is no such number.
    """
    value = group[key]
    if type(value) is not int or value < 1 or (most is not None and value > most):
        upper = "of 1 or more" if most is None else f"from 1 to {most}"
        raise ValueError(f"Invalid {key}: {value!r}; it has to be a whole number {upper}.")
    return value


def checked_loss_average(value: Any) -> bool | int:
    """A valid `loss_average`.

    Args:
        value: as the user passed it: True, False or a whole number, possibly as a tensor of one element.

    Returns:
        The bool or the number.

    Raises:
        ValueError: if it is none of these, below 1, or too large for a float to represent exactly.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or (isinstance(value, int) and 1 <= value <= _LARGEST_COUNT):
        return value
    raise ValueError(
        f"Invalid loss_average: {value!r}; True (mean over the batch), False (sum), or the number of terms that the "
        "loss averages over, 1 or more."
    )


def check_settings(**settings: float) -> None:
    """Refuses settings of torch's own optimizers that are out of their range, NaN included, which torch accepts.

    Args:
        settings: values by name. "momentum", "decay", "beta1" and "beta2" must be in [0, 1), all others in
            [0, infinity).

    Raises:
        ValueError: if one is out of range.
    """
    for key in settings:
        in_range(settings, key, 0, 1 if key in ("momentum", "decay", "beta1", "beta2") else math.inf)


def refuse_float16(model: nn.Module, reason: str) -> None:
    """Refuses a model with float16 weights.

    Args:
        model: the model to be optimized.
        reason: why the method cannot train it; the message is "<parameter> is float16, <reason>".

    Raises:
        ValueError: if a parameter is float16.
    """
    for name, p in model.named_parameters():
        if p.dtype is torch.float16:
            raise ValueError(f"{name} is float16, {reason}; use bfloat16 or float32.")


def from_peers(package: str, name: str) -> Any:
    """The class of an optimizer from a package that is needed for comparisons only.

    Args:
        package: name of a package in the extra `peers`.
        name: the class's name.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        return getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise ValueError(
            f'{name} is in the package {package}, which is not installed: pip install -e ".[peers]"'
        ) from error


def _number(group: dict[str, Any], key: str) -> float:
    value = group[key]
    if type(value) is float:  # the usual case, in every layer of every step
        return value
    single = not isinstance(value, torch.Tensor) or (value.numel() == 1 and not value.is_complex())
    if isinstance(value, bool) or not isinstance(value, int | float | torch.Tensor) or not single:
        raise ValueError(f"Invalid {key}: {value!r}; it has to be a number.")
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if value > 0 else -math.inf


def chosen_modules(model: nn.Module, wanted: Iterable[str | type[nn.Module]]) -> tuple[str, ...]:
    """Names of the modules that the user selected.

    Args:
        model: the model to be optimized.
        wanted: names, patterns of names (as in a shell: "blocks.*.norm"), or classes of modules.

    Returns:
        Names as in `model.named_modules()`, each once.

    Raises:
        ValueError: if one of them matches no module.
    """
    wanted = (wanted,) if isinstance(wanted, str | type) else tuple(wanted)
    modules = dict(model.named_modules())
    chosen: dict[str, None] = {}
    for one in wanted:
        if isinstance(one, type):
            matches = [name for name, module in modules.items() if isinstance(module, one)]
        else:
            matches = [one] if one in modules else fnmatch.filter(modules, str(one))
        if not matches:
            similar = difflib.get_close_matches(str(one), modules, 3) or sorted(modules)[:5]
            what = one.__name__ if isinstance(one, type) else repr(one)
            raise ValueError(f"Invalid explicit: the model has no module {what}; it has {', '.join(similar)}.")
        chosen.update(dict.fromkeys(matches))
    return tuple(chosen)


def refuse_set(params: Any, method: str) -> None:
    """Refuses parameters in a set, because `state_dict` identifies parameters by their order.

    Args:
        params: as the user passed them.
        method: name of the optimizer, for the message.

    Raises:
        TypeError: if they are in a set.
    """
    if isinstance(params, set | frozenset):
        raise TypeError(f"{method}: params is a set, whose order differs from run to run; give a list.")


def read_params(params: Any, method: str) -> tuple[list[nn.Parameter], dict[nn.Parameter, str]]:
    """Reads the parameters of a param group.

    Args:
        params: as torch.optim takes them: one tensor, several tensors, or pairs of name and tensor
            (`model.named_parameters()`).
        method: name of the optimizer, for the message.

    Returns:
        The tensors, and their names; no names if none were given.

    Raises:
        TypeError: if they are in a set, or not tensors.
        ValueError: if only some have names.
    """
    refuse_set(params, method)
    given = [params] if isinstance(params, torch.Tensor) else list(params)
    pairs = [one for one in given if isinstance(one, tuple)]
    if pairs and len(pairs) < len(given):
        raise ValueError(f"{method}: some parameters have names and others not; name all of them, or none.")
    tensors: list[Any] = [one[1] if isinstance(one, tuple) else one for one in given]
    for one in tensors:
        if not isinstance(one, torch.Tensor):
            raise TypeError(f"{method} can only optimize tensors, not {type(one).__name__}.")
    return tensors, {p: name for name, p in pairs}


def check_loaded(state_dict: dict[str, Any], groups: list[dict[str, Any]], method: str) -> None:
    """Refuses the state of another optimizer.

    Args:
        state_dict: the state to be loaded.
        groups: param groups of the optimizer that loads it.
        method: that optimizer's name.

    Raises:
        ValueError: if a group differs in its method, or in its kind of update (proximal or explicit).
    """
    loaded = state_dict["param_groups"]
    for index, (there, here) in enumerate(zip(loaded, groups, strict=False)):
        if there.get("update") != here["update"] or there.get("method", method) != here.get("method", method):
            kind = there.get("method") or ("another optimizer" if "update" not in there else "another model")
            raise ValueError(
                f"{method}: group {index} of this state_dict belongs to {kind}; load the state of a {method} "
                "made for a model of the same layers."
            )


def check_real(name: str, params: Iterable[nn.Parameter], method: str) -> None:
    """Refuses a layer with complex parameters.

    Args:
        name: the layer's name.
        params: the layer's parameters.
        method: name of the optimizer, for the message.

    Raises:
        TypeError: if a parameter is complex.
    """
    if any(p.is_complex() for p in params):
        raise TypeError(
            f"{method}: layer '{name}' has complex parameters, but the subproblems are real; leave it to "
            f"the fallback optimizer with explicit=['{name}']."
        )


def check_model(model: nn.Module, method: str) -> None:
    """Refuses models that cannot be tapped.

    Args:
        model: the model to be optimized.
        method: name of the optimizer, for the message.

    Raises:
        TypeError: if it is not an `nn.Module`, or is compiled, scripted, replicated or sharded.
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
        # Only private names mark a compiled module: those of torch.compile(module) and of module.compile().
        if getattr(module, "_orig_mod", None) is not None or module._compiled_call_impl is not None:
            raise TypeError(f"{method}: {here} is compiled, and compiled layers cannot be tapped; pass the original.")
        if isinstance(module, nn.DataParallel):
            raise TypeError(
                f"{method}: {here} copies its layers for every step; pass the module that it wraps, on one device."
            )
        if any(hasattr(p, "device_mesh") for p in module.parameters(recurse=False)):
            raise TypeError(
                f"{method}: {here} is sharded (fully_shard, DTensor), so no rank holds all of its weight; give every "
                f"rank the whole model, with {method}(model, data_parallel=True)."
            )
        if any(isinstance(p, UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ValueError(f"{method}: {here} is lazy and has no weights yet; run the model once first.")
