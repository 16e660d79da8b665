"""``time_to_target``: training seconds until a target is reached, from existing run folders; trains nothing."""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sibp.analysis.comparison import Method, compare
from sibp.analysis.outcomes import Target, to_target
from sibp.analysis.statistics import Estimate, estimate
from sibp.bench.bars import Bars
from sibp.bench.record import new_record
from sibp.report.blocks import Cell, Section, Table, Text
from sibp.runs.collect import collect
from sibp.runs.errors import UserError
from sibp.runs.reading import Run
from sibp.runs.values import UsageError, shown

TARGETS = (Target("val_acc", 0.97), Target("val_acc", 0.98), Target("train_loss", 0.05))
NOTE = (
    "Training seconds of each method's chosen setting (highest final validation accuracy, as in sibp.report), median "
    "over seeds with a 95 % bootstrap interval. A target counts as reached at the first logged row that meets it; a "
    "seed that never meets it counts as ∞."
)


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Read the runs.

    Args:
        args: folders.
        arguments: of the command line.

    Returns:
        The record, with None for targets that were not reached.

    Raises:
        UserError: no such folder, or no usable run in it.
    """
    try:
        collection = collect(args.folders)
    except UsageError as error:
        raise UserError(str(error)) from error
    if not collection.runs:
        raise UserError(f"All runs are broken, such as {collection.broken[0].path}: {collection.broken[0].reason}.")
    record = new_record("time_to_target", arguments, "cpu")
    record["broken"] = len(collection.broken)
    record["trained_on"] = sorted({_environment(run) for run in collection.runs})
    record["problems"] = [
        {"title": problem.title, "methods": [_method(method) for method in problem.methods if method.runs]}
        for problem in compare(collection.runs)
    ]
    return record


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables and pictures.

    Args:
        record: from `measure`.

    Returns:
        One table and one picture per problem.
    """
    texts = [Text(NOTE), Text(f"Trained on: {'; '.join(record['trained_on'])}.")]
    if record["broken"]:
        texts.append(Text(f"{record['broken']} broken runs were left out.", warning=True))
    found = [Section("Time to a target", texts)]
    for number, problem in enumerate(record["problems"], 1):
        rows = [_row(method) for method in problem["methods"]]
        columns = ["method", "setting", "seeds", *(f"s to {target.title}" for target in TARGETS)]
        table = Table("targets", columns, rows, "Training seconds")
        found.append(Section(problem["title"], [table, _figure(f"{number}", problem)]))
    return found


def estimates(method: Mapping[str, Any]) -> list[Estimate | None]:
    """Seconds to each of `TARGETS`.

    Args:
        method: one of a record's.

    Returns:
        Infinite if more than half of the seeds did not reach it; None without a finished run.
    """
    return [
        estimate([math.inf if value is None else value for value in method["seconds"][target.title]])
        for target in TARGETS
    ]


def _environment(run: Run) -> str:
    """Device, threads and versions of a run, from its summary."""
    about = run.environment
    versions = about.get("versions")
    torch = versions.get("torch") if isinstance(versions, dict) else None
    known = {"device": about.get("device"), "threads": about.get("threads"), "torch": torch}
    return ", ".join(f"{key} {shown(value)}" for key, value in known.items() if value is not None) or "unknown"


def _method(method: Method) -> dict[str, Any]:
    seconds: dict[str, list[float | None]] = {}
    for target in TARGETS:
        reached = [found[1] for run in method.runs if (found := to_target(run, target)) is not None]
        seconds[target.title] = [value if math.isfinite(value) else None for value in reached]
    setting = method.chosen.label if method.chosen else ""
    return {"name": method.name, "setting": setting, "seeds": [run.seed for run in method.runs], "seconds": seconds}


def _row(method: Mapping[str, Any]) -> list[Cell]:
    return [method["name"], method["setting"], len(method["seeds"]), *estimates(method)]


def _figure(name: str, problem: Mapping[str, Any]) -> Bars:
    bars = {method["name"]: estimates(method) for method in problem["methods"]}
    groups = [target.title for target in TARGETS]
    return Bars(name, problem["title"], "no bar: not reached", "training seconds", [], places=groups, bars=bars)
