"""A run's identity: its name, method, problem and role, all derived from its settings.

The name ends with a digest of every setting that affects the result. The digest alone identifies a run; the rest of the
name is for people.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from sibp.runs.values import brief, canonical, shown

# Settings of where and how a run is executed and logged, not of what is trained: not part of the run's name.
NOT_IN_NAME = (
    "run_root",
    "data_root",
    "device",
    "threads",
    "download",
    "force",
    "progress",
    "tensorboard",
    "histograms",
    "checkpoint_every",
    "evaluate_test",  # test metrics, requested later, are added to the same run
    "role",
)
# Settings that came after the first kept runs: a run without one was made with this value, and runs that have it at
# this value keep the name of those without.
LATER = {
    "schedule": "constant",
    "decays": "lr",
    "warmup_steps": 0,
    "label_noise": 0.0,
    "replacement": False,
    "train_limit": None,
    "log_early": None,
    "eval_val_limit": None,
    "plugins": [],
}
LATER_OF_MODEL = {"mlp": {"activation": "relu"}}  # the same for settings of a model, by its name
_FALLBACK = {"fallback_lr": 0.001}
_PROXIMAL = {"prox_weight_scaling": "absolute", "line_search": False, **_FALLBACK}
LATER_OF_OPTIMIZER = {  # the same for settings of an optimizer, by its name
    "sibp": {"backward_weights": "new", **_PROXIMAL},
    "proxbp": {"backward_weights": "old", **_PROXIMAL},
    "sibp_auto": _FALLBACK,
}
# Other settings that do not define the problem: how often metrics are logged changes no result.
NOT_A_PROBLEM = (*NOT_IN_NAME, "seed", "optimizer", "log_every", "log_early", "target_val_acc", "experiment", "plugins")
# A direction in an outer optimizer, such as sibp_fed with outer=muon, is known by the name of its config.
FED = {"sgd": "momentum", "adam": "adam", "adagrad": "adagrad", "muon": "muon"}
TRIAL, FINAL = "trial", "final"
ROLES = (TRIAL, FINAL)
LONGEST_NAME = 120  # bytes of the readable part; a file's name may have 255


def digest(config: Mapping[str, Any]) -> str:
    """A digest of the settings; equal settings have equal digests, and 1 equals 1.0.

    Args:
        config: the resolved settings.

    Returns:
        Ten hexadecimal digits.
    """
    named = {k: v for k, v in config.items() if k not in NOT_IN_NAME and not (k in LATER and v == LATER[k])}
    if model := _group(config, "model"):
        later = LATER_OF_MODEL.get(str(model.get("name")), {})
        named["model"] = {k: v for k, v in model.items() if not (k in later and v == later[k])}
    if optimizer := _group(config, "optimizer"):
        named["optimizer"] = essential(optimizer)
    return hashlib.sha256(canonical(named).encode()).hexdigest()[:10]


def essential(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's settings without those added after the first kept runs, where these are at their neutral default.

    Args:
        optimizer: the settings of its group.

    Returns:
        The same for a run from before a setting existed as for one with its default.
    """
    later = LATER_OF_OPTIMIZER.get(str(optimizer.get("name")), {})
    return {key: value for key, value in optimizer.items() if not (key in later and value == later[key])}


def digest_in(name: str) -> str:
    """The digest at the end of a run folder's name."""
    return name.rpartition("-")[2]


def run_name(config: Mapping[str, Any]) -> str:
    """The folder's name: a readable part, then the digest.

    Args:
        config: the resolved settings.

    Returns:
        Such as ``mnist-mlp500-sibp-cg5-lr0.3-pw1-s0-1f0c2a9b3d``.
    """
    dataset, model, optimizer = (_group(config, key) for key in ("dataset", "model", "optimizer"))
    hidden = model.get("hidden")
    widths = "x".join(map(str, hidden)) if isinstance(hidden, list) else ""
    solver, prox_weight, momentum = (optimizer.get(key) for key in ("solver", "prox_weight", "momentum"))
    parts = [
        str(dataset.get("name")),
        f"{model.get('name')}{widths}",
        known_as(optimizer),
        *([str(solver).replace(":", "")] if solver is not None else []),
        f"lr{brief(optimizer.get('lr'))}",
        *([f"pw{brief(prox_weight)}"] if prox_weight is not None else []),
        *([f"m{brief(momentum)}"] if momentum else []),
        f"s{config.get('seed')}",
    ]
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "_" for c in "-".join(parts))
    return f"{readable[:LONGEST_NAME]}-{digest(config)}"


def known_as(optimizer: Mapping[str, Any]) -> str:
    """An optimizer's display name: that of its config, if several configs share a builder.

    Args:
        optimizer: the settings of its group.

    Returns:
        Such as ``sibp_muon`` for the builder ``sibp_fed`` with ``outer=muon``.
    """
    name, outer = str(optimizer.get("name")), FED.get(str(optimizer.get("outer")))
    direction = name.removesuffix("_fed")
    return name if direction == name or outer is None else f"{direction}_{outer}"


def method_name(optimizer: Mapping[str, Any]) -> str:
    """The method, without its numeric hyper-parameters.

    Args:
        optimizer: the settings of its group.

    Returns:
        The optimizer's name and its string options, the solver first: ``sibp cg:5``.
    """
    options = {key: value for key, value in essential(optimizer).items() if isinstance(value, str) and key != "name"}
    name = known_as(optimizer)
    if name != optimizer.get("name"):
        del options["outer"]  # implied by the name
    ordered = sorted(options, key=lambda key: (key != "solver", key))
    return shown(" ".join([name, *(options[key] for key in ordered)]))


def setting_name(optimizer: Mapping[str, Any]) -> str:
    """The numeric hyper-parameters in use.

    Args:
        optimizer: the settings of its group.

    Returns:
        Such as ``lr=0.1 momentum=0.9``, the learning rate first.
    """
    rest = {key: value for key, value in optimizer.items() if not isinstance(value, str)}
    used = {key: value for key, value in rest.items() if key == "lr" or value not in (0, False, None)}
    ordered = sorted(used, key=lambda key: (key != "lr", key))
    return shown(" ".join(f"{key}={brief(used[key])}" for key in ordered))


def problem_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's task: the settings that all methods of a comparison share.

    Args:
        config: the resolved settings.

    Returns:
        These settings; settings added later have their default if absent.
    """
    config = {**LATER, **config}
    if model := _group(config, "model"):
        config["model"] = {**LATER_OF_MODEL.get(str(model.get("name")), {}), **model}
    return {key: value for key, value in config.items() if key not in NOT_A_PROBLEM}


def role_of(config: Mapping[str, Any]) -> str | None:
    """A run's role.

    Args:
        config: the resolved settings.

    Returns:
        ``trial``: to choose a setting; ``final``: to evaluate the chosen one; None: not given.
    """
    role = config.get("role")
    if role in ROLES:
        return role
    return TRIAL if config.get("evaluate_test") is False else None  # as tuning recorded it before roles existed


def _group(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    group = config.get(key)
    return group if isinstance(group, Mapping) else {}
