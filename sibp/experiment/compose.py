"""From a command line's words to resolved configs, or to one sentence that says what is wrong with them.

Only commands (:mod:`sibp.train`, :mod:`sibp.tune` and scripts) use this: it knows of Hydra, the rest does not.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sibp
from sibp.experiment.errors import UserError
from sibp.experiment.plugins import load_plugins
from sibp.experiment.settings import Settings, refuse_unknown

PACKAGE = Path(sibp.__file__).resolve().parent
# The package sibp.configs: inside sibp where a wheel put it, beside it in a checkout.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
SEARCH_PATH = "hydra.searchpath"
GROUPS = ("dataset", "model", "optimizer", "experiment")


def compose(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any]:
    """Compose one run's config.

    Args:
        overrides: ``key=value`` words, as on the command line.
        config_name: the primary config in ``configs/``.

    Returns:
        The resolved settings as plain mappings.

    Raises:
        UserError: the words do not make a config.
    """
    (config,) = plan(overrides, sweep=False, config_name=config_name)
    return config


def plan(overrides: Sequence[str], sweep: bool, config_name: str = "config") -> list[dict[str, Any]]:
    """Compose the config of every run that a command asks for, in the order in which they will run.

    Args:
        overrides: ``key=value`` words; in a sweep a value may be a list separated by commas.
        sweep: whether commas mean several runs.
        config_name: the primary config in ``configs/``.

    Returns:
        One resolved config a run.

    Raises:
        UserError: a word or a config is wrong; names the key, what exists and the fix.
    """
    _refuse_words(overrides)
    if not (CONFIGS / f"{config_name}.yaml").is_file():
        raise UserError(
            f"--config-name={config_name} is not possible: put what it says into DIR/experiment/{config_name}.yaml, "
            f"and give --config-dir=DIR experiment={config_name}."
        )
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        jobs = _split(overrides, config_name) if sweep else [list(overrides)]
        return [_compose(job, config_name) for job in jobs]


def hydra_config(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """Compose what a sweep's jobs share, with the node that says how Hydra is to launch them.

    Args:
        overrides: the sweep's words; those with several values are left out.
        config_name: the primary config in ``configs/``.

    Returns:
        The config, with ``hydra``.

    Raises:
        UserError: the words do not make a config.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return _base(overrides, config_name)


def with_folder(overrides: Sequence[str], folder: str | None) -> list[str]:
    """The words of a command, with one more that has Hydra look for configs in a user's folder, too.

    Args:
        overrides: as typed.
        folder: whose sub-folders are groups, such as ``optimizer``; None: there is none.

    Returns:
        The words for :func:`plan`, :func:`compose` and :func:`hydra_config`.

    Raises:
        UserError: there is no such folder, or a file in it would be hidden by one of ours.
    """
    for word in overrides:
        if word.lstrip("+").startswith(SEARCH_PATH):
            raise UserError(f"{word} is not possible: name the folder of your configs by --config-dir=DIR.")
    if folder is None:
        return list(overrides)
    place = Path(folder).resolve()
    if not place.is_dir():
        raise UserError(f"--config-dir={folder} is no folder: give the one that your groups are in.")
    for path in sorted(place.glob("*.yaml")) + sorted(place.glob("*/*.yaml")):
        name = path.relative_to(place)
        if (CONFIGS / name).exists():
            raise UserError(f"{path} would be hidden by sibp's own {name}: give it another name.")
    quoted = str(place).replace("\\", "\\\\").replace("'", "\\'")
    return [*overrides, f"{SEARCH_PATH}=['file://{quoted}']"]


def folders(overrides: Sequence[str]) -> list[Path]:
    """The folders in which configs are looked for.

    Args:
        overrides: the command's words.

    Returns:
        The project's own, then those of the word made by :func:`with_folder`.

    Raises:
        UserError: a word cannot be read.
    """
    own = [word for word in overrides if word.startswith(f"{SEARCH_PATH}=")]
    try:
        given = [word.value() for word in OverridesParser.create().parse_overrides(own)]
    except (HydraException, ValueError) as error:
        raise UserError(_sentence(error, overrides, "config")) from error
    places = [str(place) for value in given if isinstance(value, list) for place in value]
    return [CONFIGS, *(Path(place.removeprefix("file://")) for place in places)]


def _base(overrides: Sequence[str], config_name: str) -> DictConfig:
    try:
        words = OverridesParser.create().parse_overrides(list(overrides))
        fixed = [word.input_line or "" for word in words if not word.is_sweep_override()]
        return hydra_compose(config_name, fixed, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_sentence(error, overrides, config_name)) from error


def _refuse_words(overrides: Sequence[str]) -> None:
    """Refuse what would take a setting away, and what would have Hydra load code or files from elsewhere."""
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if word.startswith("~"):
            raise UserError(f"{word} would remove a setting, and every run needs all of them: leave it out.")
        if key == "sweep":
            raise UserError(f"{word} is for tuning: sibp tune {word.lstrip('+')}")
        ours = key in ("hydra/launcher", SEARCH_PATH) or key.startswith("hydra.launcher.")
        if key.startswith("hydra") and not ours:
            raise UserError(f"{word} is not possible: of Hydra's own settings, only its launcher's can be given.")


def _split(overrides: Sequence[str], config_name: str) -> list[list[str]]:
    """The words of each job of a sweep, as Hydra's basic sweeper will make them."""
    base = _base(overrides, config_name)
    try:
        params = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
        words = OverridesParser.create().parse_overrides([*params, *overrides])
        (jobs,) = BasicSweeper.split_arguments(words, max_batch_size=None)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_sentence(error, overrides, config_name)) from error
    return jobs


def _compose(overrides: Sequence[str], config_name: str) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(hydra_compose(config_name, list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_sentence(error, overrides, config_name)) from error
    assert isinstance(resolved, dict)
    config = {str(key): value for key, value in resolved.items()}
    refuse_unknown("", config, [field.name for field in fields(Settings)])
    load_plugins(config.get("plugins"))
    return config


def _sentence(error: Exception, overrides: Sequence[str], config_name: str) -> str:
    """What Hydra found wrong, in terms of the words that were typed."""
    if isinstance(error, MissingConfigException) and "hydra/launcher/" in str(error):
        return 'This launcher is not installed: pip install -e ".[sweep]", or choose hydra/launcher=basic.'
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.partition("/")
        return f"There is no {group} {option!r}; choose one of: {', '.join(error.options)} (such as {group}=\
{error.options[0]})."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: write key=value, and quote values with spaces or brackets."
    text = str(error).splitlines()[0]
    if text.startswith("Ambiguous value"):
        return f"{text.split(chr(39))[1]} gives several values: add -m to train one run for each."
    key = getattr(error.__cause__, "full_key", None)
    if isinstance(error, ConfigCompositionException) and key:
        return _unknown_key(key, overrides, config_name)
    return f"{' '.join(overrides)} makes no config: {text}"


def _unknown_key(key: str, overrides: Sequence[str], config_name: str) -> str:
    groups = [word for word in overrides if word.split("=")[0] in (*GROUPS, SEARCH_PATH)]
    config = OmegaConf.to_container(hydra_compose(config_name, groups))
    known = _dotted(config if isinstance(config, dict) else {})
    parent = key.rpartition(".")[0]
    near = [name for name in known if name.rpartition(".")[2] == key]
    near += difflib.get_close_matches(key, [*known, *GROUPS], n=1)
    siblings = [name for name in known if name.startswith(parent + ".")] if parent else []
    if not siblings:
        siblings = [*GROUPS, *(name for name in known if "." not in name)]
    guess = f"; did you mean {near[0]}?" if near else "."
    return f"There is no setting {key}{guess} The settings here are: {', '.join(siblings)}."


def _dotted(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        names += _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return names
