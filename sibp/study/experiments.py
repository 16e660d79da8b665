"""The list of experiments, results/experiments.yaml, and whether each is kept."""

from dataclasses import dataclass
from pathlib import Path

from sibp.runs.values import UsageError
from sibp.runs.yaml_file import parse_yaml

KINDS = ("train", "tune", "chosen", "script")
REPRODUCE = "python scripts/reproduce.py"


@dataclass(frozen=True)
class Experiment:
    """What to run for a question, and how long that takes; ``commands`` is folder -> command."""

    name: str
    asks: str
    minutes: float
    commands: dict[str, str]
    note: str = ""

    @property
    def is_full(self) -> bool:
        """Whether it is only run when it is asked for by name."""
        return self.name.endswith("_full")

    @property
    def command(self) -> str:
        """What runs or resumes it."""
        return f"{REPRODUCE} {self.name}"


def read_experiments(path: Path) -> dict[str, Experiment]:
    """``{name: experiment}``, in the file's order.

    Raises:
        UsageError: an entry is wrong; names it.
    """
    found = {}
    for name, node in parse_yaml(path.read_text()).items():
        try:
            found[name] = Experiment(name, **node)
        except TypeError as error:
            raise UsageError(f"{path.name}: {name}: {str(error).partition('__init__() ')[2]}.") from error
        for command in found[name].commands.values():
            if command.split()[0] not in KINDS:
                raise UsageError(f"{path.name}: {name}: {command} does not begin with one of {', '.join(KINDS)}.")
    return found


def is_kept(name: str, results: Path) -> bool:
    """Whether any evidence of an experiment is kept."""
    return any((results / name).rglob("*.json*"))
