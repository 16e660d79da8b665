"""The experiments of results/experiments.yaml, and what is kept of each."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sibp.analysis.arena import ARENA
from sibp.report.markdown import lines_of_table
from sibp.runs.packed import PACKED, joined
from sibp.runs.values import UsageError
from sibp.runs.yaml_file import parse_yaml

KINDS = ("train", "tune", "chosen", "script")
REPRODUCE = "python scripts/reproduce.py"


@dataclass(frozen=True)
class Experiment:
    """A question and the commands that answer it."""

    name: str
    asks: str
    minutes: float  # estimated duration
    commands: dict[str, str]  # folder -> command
    note: str = ""

    @property
    def is_full(self) -> bool:
        """Whether it is run only when named explicitly."""
        return self.name.endswith("_full")

    @property
    def command(self) -> str:
        """The command that runs or resumes it."""
        return f"{REPRODUCE} {self.name}"


def read_experiments(path: Path) -> dict[str, Experiment]:
    """``{name: experiment}``, in the file's order.

    Raises:
        UsageError: an entry is invalid; the message names it.
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


def provenance(results: Path) -> str:
    """One row per experiment of ``results``: its kept runs, and how many were made with uncommitted changes."""
    kept: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for path in sorted(results.rglob(PACKED)):
        parts = path.relative_to(results).parts
        name = "/".join(parts[: 2 if parts[0] == ARENA else 1])  # the arena holds several experiments
        shared, *runs = map(json.loads, path.read_text().splitlines())
        kept[name] += len(runs)
        changed[name] += sum(joined(shared, run)["summary"]["environment"]["git_dirty"] for run in runs)
    rows = [[f"`{name}`", str(count), str(changed[name])] for name, count in kept.items()]
    total = ["all", str(kept.total()), str(changed.total())]
    return lines_of_table(("experiment", "kept runs", "with uncommitted changes"), [*rows, total])
