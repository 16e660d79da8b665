"""Modules of other people's, which register optimizers, models, data sets and activations beside ours.

A command names them: ``plugins=[my_module]``. Importing a module runs its code, so only settings that were composed
from a command's words and config folders get here; what reads run folders (reports, tables) never does.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from sibp.experiment.settings import checked
from sibp.runs.errors import UserError


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
