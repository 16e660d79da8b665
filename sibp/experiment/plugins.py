"""User modules that register optimizers, models, data sets and activations.

They are named by a command, ``plugins=[my_module]``, or by an installed package's entry point of the group
``sibp.plugins``. Importing a module runs its code, so only settings composed from a command's overrides and config
folders may name one; reading run folders (reports, tables) imports nothing.
"""

import hashlib
import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sibp.experiment.settings import checked
from sibp.runs.errors import UserError

GROUP = "sibp.plugins"  # of entry points


def load_plugins(names: Any) -> None:
    """Import the modules named by the setting ``plugins``.

    Args:
        names: of modules, installed or in the current folder.

    Raises:
        UserError: a module is missing, or fails on import.
    """
    for name in checked("plugins", names, list[str]):
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"plugins=[{name}] is not possible: give the names of modules, such as [my_module].")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # present with python -m, missing with a console command
        try:
            importlib.import_module(name)
        except Exception as error:  # a plugin may raise anything
            if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"plugins=[{name}]: there is no module {error.name}: install its package, or run the command "
                    "in the folder that contains it."
                ) from error
            reason = " ".join(str(error).split())
            raise UserError(f"plugins=[{name}] cannot be imported ({type(error).__name__}: {reason}).") from error


def load_installed() -> None:
    """Import the modules that installed packages declare as entry points of the group ``sibp.plugins``.

    Done only when a config names an unknown entry, so that unused packages cost no time and cannot break anything.

    Raises:
        UserError: a module cannot be imported; names the package.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:  # a plugin may raise anything
            package = point.dist.name if point.dist else point.value
            reason = " ".join(str(error).split())
            raise UserError(
                f"The plugin {point.name} of the package {package} cannot be imported ({type(error).__name__}: "
                f"{reason}): fix it, or uninstall the package."
            ) from error


def digest_of(name: str) -> str | None:
    """A digest of a plugin's source, a package's with all its modules.

    Args:
        name: of an imported module.

    Returns:
        SHA-256 in hexadecimal; None if it has no source.
    """
    module = sys.modules[name]
    files = [path for folder in getattr(module, "__path__", ()) for path in sorted(Path(folder).rglob("*.py"))]
    if not files and module.__file__:
        files = [Path(module.__file__)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else None


def versions_of_installed() -> dict[str, str]:
    """The packages whose entry points are imported.

    Returns:
        name -> version.
    """
    used = [point for point in entry_points(group=GROUP) if point.module in sys.modules]
    return {point.dist.name: point.dist.version for point in used if point.dist}
