"""Command-line overrides, ``key=value``: quoted for Hydra, refused, or explained with a suggestion."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sibp.runs.errors import UserError

GROUPS = ("dataset", "model", "optimizer", "experiment")
FOLDERS = ("run_root", "data_root")
LAUNCHER = "hydra/launcher"
SEARCH_PATH = "hydra.searchpath"  # from --config-dir only
# Names of these settings in other programs.
MEANT = {
    "learning_rate": "optimizer.lr",
    "step_size": "optimizer.lr",
    "eta": "optimizer.lr",
    "lambda": "optimizer.prox_weight",
    "lam": "optimizer.prox_weight",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "hidden": "model.hidden",
    "width": "model.hidden",
    "gpu": "device",
    "output_dir": "run_root",
    "data_dir": "data_root",
    "num_threads": "threads",
}
# A value that needs no quotes for Hydra, and a call of a Hydra function, such as choice(a,b).
PLAIN = re.compile(r"[\w/.+:%*@?|$ -]*", re.ASCII)
FUNCTION = re.compile(r"(choice|range|glob|sort|shuffle|tag|str)\(.*\)")


def readable(overrides: Sequence[str]) -> list[str]:
    """Quote overrides for Hydra.

    Args:
        overrides: as typed; a folder may have any name, and a group may come with Hydra's ``+``.

    Returns:
        As many overrides: folder names quoted where necessary, and ``~/`` expanded.

    Example:
        >>> readable(["run_root=a#b", "+experiment=x", "seed=1"])
        ["run_root='a#b'", 'experiment=x', 'seed=1']
    """
    return [_readable(override) for override in overrides]


def _readable(override: str) -> str:
    key, equals, value = override.partition("=")
    if equals and key.startswith("+") and key.lstrip("+") in GROUPS:
        return f"{key.lstrip('+')}={value}"  # already in config.yaml, where + would add them again
    if key not in FOLDERS or "${" in value or FUNCTION.fullmatch(value) or value[:1] in ("'", '"'):
        return override
    return f"{key}=" + ",".join(_quoted(part) for part in value.split(","))


def _quoted(folder: str) -> str:
    folder = os.path.expanduser(folder) if folder.startswith("~") else folder
    if PLAIN.fullmatch(folder):
        return folder
    inside = re.sub(r"(\\*)'", r"\1\1\\'", folder)
    return "'" + re.sub(r"(\\+)$", r"\1\1", inside) + "'"


def refuse(overrides: Sequence[str], trusted: bool = False) -> None:
    """Refuse overrides that delete settings, or that make Hydra load code or files.

    Args:
        overrides: of the command line.
        trusted: whether a config search path, as set by --config-dir, is allowed.

    Raises:
        UserError: names the override.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if "\0" in override:
            raise UserError(f"{cut(override)} is not possible: it contains a NUL byte.")
        if not key:
            raise UserError(f"{cut(override)} names no setting: write key=value, such as seed=3.")
        if key in GROUPS and override.endswith(("=null", "=")):
            raise UserError(f"{override} is not possible: give a name, or leave it out.")
        if override.startswith("~"):
            raise UserError(f"{override} would remove a setting, and every run needs all of them: leave it out.")
        if key == "sweep":
            raise UserError(f"{override} is for tuning: sibp tune {override.lstrip('+')}")
        if key == SEARCH_PATH and not trusted:
            raise UserError(f"{override} is not possible: name the folder of your configs by --config-dir=DIR.")
        ours = key == LAUNCHER or key.startswith("hydra.launcher.")
        if key.startswith("hydra") and not ours and not (trusted and key == SEARCH_PATH):
            raise UserError(f"{override} is not possible: of Hydra's settings, only its launcher's can be changed.")


def refuse_idle(overrides: Sequence[str], multirun: bool) -> None:
    """Refuse a launcher without a sweep, and settings of a launcher if no launcher is chosen.

    Args:
        overrides: of a command that trains.
        multirun: whether it is a sweep.

    Raises:
        UserError: names the override.
    """
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if key == LAUNCHER and not multirun and not override.endswith("=basic"):
            raise UserError(f"{cut(override)} has no effect on a single run: add -m, or leave it out.")
        if key.startswith(f"{LAUNCHER.replace('/', '.')}.") and LAUNCHER not in keys:
            raise UserError(f"{cut(override)} has no effect without {LAUNCHER}=...: give both or neither.")


def unknown_option(group: str, option: str, options: Sequence[str]) -> str:
    """The error for an unknown option of a group.

    Args:
        group: such as optimizer.
        option: as typed.
        options: the existing ones.

    Returns:
        A sentence.
    """
    near = difflib.get_close_matches(option, options, n=1)
    such = f"did you mean {group}={near[0]}?" if near else f"such as {group}={options[0]}"
    return f"There is no {group} {option!r}; choose one of: {', '.join(options)} ({such})."


def unknown_key(key: str, config: Mapping[Any, Any]) -> str:
    """The error for an unknown setting.

    Args:
        key: as typed, dotted.
        config: the existing settings, nested.

    Returns:
        A sentence with the most likely one.
    """
    known = _dotted(config)
    parent, _, last = key.rpartition(".")
    near = [name for name in known if name.rpartition(".")[2] == key]
    meant = MEANT.get(last.lower().replace("-", "_"))
    near += [meant] if meant in known else []
    siblings = [name for name in known if name.startswith(parent + ".")] if parent else []
    if siblings:
        ends = [name.rpartition(".")[2] for name in siblings]
        near += [f"{parent}.{end}" for end in difflib.get_close_matches(last, ends, n=1)]
    else:
        near += difflib.get_close_matches(key, [*known, *GROUPS], n=1, cutoff=0.75)
        siblings = [*GROUPS, *(name for name in known if "." not in name)]
    guess = f"; did you mean {near[0]}?" if near else "."
    return f"There is no setting {cut(key)}{guess} The settings here are: {', '.join(siblings)}."


def cut(text: str) -> str:
    """A text, shortened to fit into a sentence.

    Args:
        text: any.

    Returns:
        The text, or its beginning and three dots; unprintable characters become question marks.
    """
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 80 else text[:77] + "..."


def _dotted(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        names += _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return names
