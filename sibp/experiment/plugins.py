"""Modules of other people's, which register optimizers, models, data sets and activations beside ours.

A command names them, ``plugins=[my_module]``, or an installed package does, by an entry point of the group
``sibp.plugins``. Importing a module runs its code, so only settings that were composed from a command's overrides and
config folders get here; what reads run folders (reports, tables) never does.
"""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sibp.experiment.settings import checked
from sibp.runs.errors import UserError

GROUP = "sibp.plugins"  # of entry points


def load_plugins(names: Any) -> None:
    """Import the modules that the setting ``plugins`` names.

    Args:
        names: of modules, installed or in the current folder.

    Raises:
        UserError: one is not there, or fails while it is imported.
    """
    for name in checked("plugins", names, list[str]):
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"plugins=[{name}] is not possible: give the names of modules, such as [my_module].")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # as python -m has it; a console command has not
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module of someone else's may raise
            if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"plugins=[{name}]: there is no module {error.name}: install its package, or give the command "
                    "in the folder that it is in."
                ) from error
            reason = " ".join(str(error).split())
            raise UserError(f"plugins=[{name}] cannot be imported ({type(error).__name__}: {reason}).") from error


def load_installed() -> None:
    """Import what installed packages offer by entry points of the group ``sibp.plugins``.

    Done when a config names something that is not in a table, so that a package which is not used costs no time and
    can break nothing.

    Raises:
        UserError: a module of theirs cannot be imported; names the package.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:  # whatever a module of someone else's may raise
            package = point.dist.name if point.dist else point.value
            reason = " ".join(str(error).split())
            raise UserError(
                f"The plugin {point.name} of the package {package} cannot be imported ({type(error).__name__}: "
                f"{reason}): fix it, or uninstall the package."
            ) from error


def versions_of_installed() -> dict[str, str]:
    """The packages whose entry points are imported.

    Returns:
        name -> version.
    """
    used = [point for point in entry_points(group=GROUP) if point.module in sys.modules]
    return {point.dist.name: point.dist.version for point in used if point.dist}
