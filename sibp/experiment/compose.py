"""From command-line overrides to resolved configs, or to a one-sentence error.

Only commands (`sibp.train`, `sibp.tune` and scripts) use this module, which alone depends on Hydra.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir

# Private: Hydra has no other function that splits a sweep into jobs.
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

import sibp
from sibp.experiment.overrides import GROUPS, LAUNCHER, SEARCH_PATH, cut, readable, refuse, unknown_key, unknown_option
from sibp.experiment.plugins import load_plugins
from sibp.experiment.settings import Settings, refuse_unknown
from sibp.runs.errors import UserError

PACKAGE = Path(sibp.__file__).resolve().parent
# The package sibp.configs: inside sibp in a wheel, beside it in a checkout.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


def compose(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any]:
    """Compose one run's config.

    Args:
        overrides: ``key=value``, as on the command line.
        config_name: the primary config in ``configs/``.

    Returns:
        The resolved settings as plain mappings.

    Raises:
        UserError: an invalid override or config.
    """
    (config,) = plan(overrides, sweep=False, config_name=config_name)
    return config


def plan(overrides: Sequence[str], sweep: bool, config_name: str = "config") -> list[dict[str, Any]]:
    """Compose the config of every run of a command, in order.

    Args:
        overrides: ``key=value``; in a sweep a value may be a comma-separated list.
        sweep: whether commas mean several runs.
        config_name: the primary config in ``configs/``.

    Returns:
        One resolved config per run.

    Raises:
        UserError: an invalid override or config; names the key, the valid ones, the fix, and in a sweep the job.
    """
    refuse(overrides, trusted=True)
    overrides = readable(overrides)
    with _configs(config_name):
        jobs = _split(overrides, config_name) if sweep else [overrides]
        configs: list[dict[str, Any]] = []
        wrong: list[tuple[list[str], UserError]] = []
        for job in jobs:
            try:
                configs.append(_compose(job, config_name))
            except UserError as error:
                wrong.append((job, error))
    if wrong:
        job, error = wrong[0]
        own = [override for override in job if any(override not in other for other in jobs)]
        where = f" This applies to {len(wrong)} of {len(jobs)} jobs, such as {' '.join(own)}." if configs else ""
        raise UserError(f"{str(error).removesuffix('.')}.{where}") from error
    return configs


def hydra_config(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """Compose Hydra's own node, which says how to launch a sweep's jobs.

    Args:
        overrides: the sweep's overrides; those not about Hydra are ignored.
        config_name: the primary config in ``configs/``.

    Returns:
        A config with ``hydra``.

    Raises:
        UserError: an invalid override or config.
    """
    with _configs(config_name):
        return _base(overrides, config_name)


def with_folder(overrides: Sequence[str], folder: str | None) -> list[str]:
    """A command's overrides, plus one that adds the user's config folder to Hydra's search path.

    Args:
        overrides: as typed.
        folder: with groups, such as ``optimizer``, as sub-folders; or None.

    Returns:
        The overrides for `plan`, `compose` and `hydra_config`.

    Raises:
        UserError: no such folder, or one of its files would be hidden by a file of the project.
    """
    for override in overrides:
        if override.lstrip("+").startswith(SEARCH_PATH):
            raise UserError(f"{override} is not possible: name the folder of your configs by --config-dir=DIR.")
    if folder is None:
        return list(overrides)
    place = Path(folder).resolve()
    if not place.is_dir():
        raise UserError(f"--config-dir={folder} is not a folder: give the folder that contains your groups.")
    for path in sorted(place.glob("*.yaml")) + sorted(place.glob("*/*.yaml")):
        name = path.relative_to(place)
        if (CONFIGS / name).exists():
            raise UserError(f"{path} would be hidden by sibp's own {name}: give it another name.")
    quoted = str(place).replace("\\", "\\\\").replace("'", "\\'")
    return [*overrides, f"{SEARCH_PATH}=['file://{quoted}']"]


def folders(overrides: Sequence[str]) -> list[Path]:
    """The config folders, the project's first.

    Args:
        overrides: those of the command.

    Returns:
        The project's own, then those of the override made by `with_folder`.
    """
    own = [override for override in overrides if override.startswith(f"{SEARCH_PATH}=")]
    given = [override.value() for override in OverridesParser.create().parse_overrides(own)]
    places = [str(place) for value in given if isinstance(value, list) for place in value]
    return [CONFIGS, *(Path(place.removeprefix("file://")) for place in places)]


@contextmanager
def _configs(config_name: str) -> Iterator[None]:
    """Make Hydra read the project's configs.

    Raises:
        UserError: there is no such primary config.
    """
    if not (CONFIGS / f"{config_name}.yaml").is_file():
        raise UserError(
            f"--config-name={config_name} is not possible: move its content to DIR/experiment/{config_name}.yaml, "
            f"and give --config-dir=DIR experiment={config_name}."
        )
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        yield


def _base(overrides: Sequence[str], config_name: str) -> DictConfig:
    about_hydra = [override for override in overrides if override.lstrip("+").startswith("hydra")]
    try:
        return hydra_compose(config_name, about_hydra, return_hydra_config=True)
    except Exception as error:  # Hydra, OmegaConf, antlr and YAML each raise their own exceptions
        raise UserError(_error_message(error, about_hydra, config_name)) from error


def _split(overrides: Sequence[str], config_name: str) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's basic sweeper will make them."""
    base = _base(overrides, config_name)
    own = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
    try:
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # glob() reads the folder
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*own, *overrides]), max_batch_size=None)
    except Exception as error:
        raise UserError(_error_message(error, overrides, config_name)) from error
    if not jobs:
        raise UserError(f"{' '.join(overrides)} selects no run: nothing matches.")
    return jobs


def _compose(overrides: Sequence[str], config_name: str) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(hydra_compose(config_name, list(overrides)), resolve=True)
    except Exception as error:
        raise UserError(_error_message(error, overrides, config_name)) from error
    assert isinstance(resolved, dict)
    config = {str(key): value for key, value in resolved.items()}
    refuse_unknown("", config, [field.name for field in fields(Settings)])
    load_plugins(config.get("plugins"))
    return config


def _error_message(error: Exception, overrides: Sequence[str], config_name: str) -> str:
    """Hydra's error as one sentence about the overrides as typed."""
    if isinstance(error, MissingConfigException) and "hydra/launcher/" in str(error):
        return 'This launcher is not installed: pip install -e ".[sweep]", or choose hydra/launcher=basic.'
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.partition("/")
        return unknown_option(group, option, error.options)
    if isinstance(error, RecursionError):
        return f"{cut(max(overrides, key=len))} cannot be read: it is nested too deeply."
    if isinstance(error, OverrideParseException):
        return (
            f"{cut(error.override)} cannot be read: write key=value, and keep special signs in quotes that the shell "
            "leaves alone: \"key='a value'\"."
        )
    text = next(iter(str(error).splitlines()), type(error).__name__)
    if text.startswith(("Ambiguous value", "Sweep parameters")):
        return f"{text.split(chr(39))[1]} gives several values: add -m to train one run for each."
    key = getattr(error.__cause__, "full_key", None)
    if isinstance(error, ConfigCompositionException) and key:
        groups = [
            override for override in overrides if override.lstrip("+").split("=")[0] in (*GROUPS, SEARCH_PATH, LAUNCHER)
        ]
        with suppress(Exception):  # the other overrides may also be invalid
            of_hydra = key.startswith("hydra.")
            config = hydra_compose(config_name, groups, return_hydra_config=of_hydra)
            known = OmegaConf.to_container(config, resolve=False)
            return unknown_key(key, known if isinstance(known, dict) else {})
    return f"{_invalid_override(overrides, config_name)} gives no valid config: {cut(text)}"


def _invalid_override(overrides: Sequence[str], config_name: str) -> str:
    """The first override that is unreadable, or without which the config can be composed; otherwise all overrides."""
    for override in overrides:
        try:
            OverridesParser.create().parse_override(override)
        except Exception:
            return cut(override)
    for i, override in enumerate(overrides):
        with suppress(Exception):
            others = [*overrides[:i], *overrides[i + 1 :]]
            OmegaConf.to_container(hydra_compose(config_name, others), resolve=True)
            return cut(override)
    return cut(" ".join(overrides))
