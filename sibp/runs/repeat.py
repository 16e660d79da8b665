"""The command that trains a run's settings with other seeds."""

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sibp.runs.identity import LATER, LATER_OF_MODEL
from sibp.runs.values import leaves
from sibp.runs.yaml_file import parse_yaml

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next((each for each in (PACKAGE / "configs", PACKAGE.parent / "configs") if each.is_dir()), None)
GROUPS = ("dataset", "model", "optimizer")
NOT_SAID = ("seed", "force", "progress", "role")  # may differ between the seeds of a comparison
PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)


def command(config: Mapping[str, Any], seeds: Sequence[int]) -> str | None:
    """The command that trains the same settings with some seeds.

    Args:
        config: the resolved settings of a run.
        seeds: one or more.

    Returns:
        One shell line; None if ``sibp train`` does not know the settings without plugins.
    """
    overrides = overrides_of(config)
    if overrides is None:
        return None
    sweep = ["-m"] if len(seeds) > 1 else []
    return shlex.join(["sibp", "train", *sweep, *overrides, f"seed={','.join(map(str, seeds))}"])


def overrides_of(config: Mapping[str, Any]) -> list[str] | None:
    """The overrides with which ``sibp train`` composes a config, without the seed.

    Args:
        config: the resolved settings of a run.

    Returns:
        The necessary ``group=option`` and ``key=value`` overrides; None as for `command`.
    """
    if CONFIGS is None:
        return None
    model = config.get("model")
    later = LATER_OF_MODEL.get(str(model.get("name")), {}) if isinstance(model, dict) else {}
    config = {**LATER, **config, **({"model": {**later, **model}} if isinstance(model, dict) else {})}
    base = {key: value for key, value in _file("config").items() if key not in ("defaults", "hydra")}
    overrides = []
    for group in GROUPS:
        settings = config.get(group)
        option = _option(group, settings) if isinstance(settings, dict) else None
        if option is None:
            return None
        overrides.append(f"{group}={option}")
        base[group] = _file(f"{group}/{option}")
    given, known = leaves(config), leaves(base)
    changed = {key: value for key, value in given.items() if key.partition(".")[0] not in NOT_SAID}
    if not changed.keys() <= known.keys():
        return None
    changed = {key: _text(value) for key, value in changed.items() if value != known[key]}
    if None in changed.values():
        return None
    return [*overrides, *(f"{key}={text}" for key, text in changed.items())]


def _option(group: str, settings: Mapping[str, Any]) -> str | None:
    """A group's option closest to some settings, among those with the same keys and name."""
    assert CONFIGS is not None
    near: dict[str, int] = {}
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        option = _file(f"{group}/{path.stem}")
        if option.get("name") == settings.get("name") and option.keys() >= settings.keys():
            near[path.stem] = sum(settings.get(key) != value for key, value in option.items())
    return min(near, key=lambda name: near[name]) if near else None


@cache
def _file(name: str) -> dict[str, Any]:
    """A file of configs/, merged with the options of its group that it builds on."""
    assert CONFIGS is not None
    own = parse_yaml((CONFIGS / f"{name}.yaml").read_text()) or {}
    group, _, _ = name.rpartition("/")
    for base in own.pop("defaults", ["_self_"]) if group else ():
        own = own if base == "_self_" else {**_file(f"{group}/{base}"), **own}
    return own


def _text(value: Any) -> str | None:
    """A value in command-line syntax; None if it cannot be typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else None
    if isinstance(value, list):
        parts = [_text(each) for each in value]
        return None if None in parts else f"[{','.join(part for part in parts if part)}]"
    return None
