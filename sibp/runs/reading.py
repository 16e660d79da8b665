"""Read a run folder defensively: the run may have been killed at any moment, or the files may not belong to a run."""

import json
import math
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sibp.runs.identity import essential, method_name, role_of, setting_name
from sibp.runs.values import BrokenError, number, number_or_nan, plain, shown
from sibp.runs.yaml_file import YamlError, parse_yaml

METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")
COLUMNS = ("step", "seconds", *METRICS)  # numbers of a logged row
STATUSES = ("completed", "diverged", "failed")
UNFINISHED = "unfinished"
MAX_CONFIG, MAX_SUMMARY, MAX_METRICS = 100_000, 10_000_000, 1_000_000_000  # bytes, far above any run
BEYOND_REASON = 1000.0  # times the first training loss
LARGEST_STEP, LARGEST_SEED = 2**53, 2**64
_OLD_NAMES = {"rounds": "iterations"}  # of statistics, in runs before November 2026


@dataclass(frozen=True, eq=False)
class Run:
    """The content of one run folder.

    Attributes:
        path: the folder.
        config: the resolved settings.
        summary: summary.json, or empty.
        status: completed, diverged, failed or unfinished.
        columns: ``step``, ``seconds`` and ``METRICS``, one entry per logged row; NaN where not finite.
        solver: layer -> statistic -> (steps, values).
        notes: repairs made while reading.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    status: str
    columns: dict[str, np.ndarray]
    solver: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    notes: tuple[str, ...]

    @property
    def seed(self) -> int:
        """The seed of initial weights and batches."""
        return self.config["seed"]

    @property
    def role(self) -> str | None:
        """``trial`` or ``final`` for a sweep's run, otherwise None."""
        return role_of(self.config)

    @property
    def environment(self) -> dict[str, Any]:
        """What the summary records of code and machine; empty if nothing."""
        found = self.summary.get("environment")
        return found if isinstance(found, dict) else {}

    @property
    def label(self) -> str:
        """The method and its hyper-parameters, such as ``sibp cg:5 lr=0.3 prox_weight=1``."""
        return f"{method_name(self.optimizer)} {setting_name(self.optimizer)}"

    @property
    def optimizer(self) -> dict[str, Any]:
        """The optimizer's name and settings, as `essential` gives them."""
        return essential(self.config["optimizer"])


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Args:
        folder: with config.yaml, metrics.jsonl and, once the run has ended, summary.json.

    Returns:
        The run.

    Raises:
        BrokenError: the files are not a usable run; says which file and why.
    """
    config = read_config(folder / "config.yaml")
    summary = read_summary(folder / "summary.json")
    rows, notes = read_rows(folder / "metrics.jsonl")
    return run_of(folder, config, summary, rows, notes)


def run_of(
    folder: Path, config: dict[str, Any], summary: dict[str, Any], rows: list[dict[str, Any]], notes: list[str]
) -> Run:
    """Assemble a run from its checked parts.

    Args:
        folder: of the run.
        config: checked by `checked_config`.
        summary: checked by `checked_summary`, or empty.
        rows: each checked by `checked_row`.
        notes: repairs made while reading.

    Returns:
        The run.

    Raises:
        BrokenError: its status is completed, but it has no rows.
    """
    status = summary.get("status", UNFINISHED)
    if status == "completed":
        status = _complete(rows, summary, notes)
    if status == "completed" and ends_beyond_reason(rows):
        status = "diverged"
        notes.append(f"taken as diverged: the training loss ended at {rows[-1]['train_loss']:.3g}")
    return Run(folder, config, summary, status, _columns(rows), _solver(rows), tuple(notes))


def read_text(path: Path, limit: int) -> str | None:
    """Read a file that may be anything: a pipe, a device, a huge file.

    Args:
        path: of the file.
        limit: maximum size in bytes.

    Returns:
        Its text, or None if it does not exist.

    Raises:
        BrokenError: it is not a regular file, too large, unreadable or not text.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # opening a named pipe would block
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise BrokenError(f"{path.name} is not a file")
            if about.st_size > limit:
                raise BrokenError(f"{path.name} has {about.st_size} bytes: too large")
            content = file.read(limit + 1)  # files generated on reading, as in /proc, have size 0
            if content is None or len(content) > limit:
                raise BrokenError(f"{path.name} has no end")
            return content.decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BrokenError(f"{path.name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BrokenError(f"{path.name} is not text (byte {error.start})") from error


def read_config(path: Path) -> dict[str, Any]:
    """A run's checked settings.

    Raises:
        BrokenError: the file is missing or damaged.
    """
    text = read_text(path, MAX_CONFIG)
    if text is None:
        raise BrokenError("config.yaml is missing")
    try:
        config = plain(parse_yaml(text))
    except BrokenError as error:
        raise BrokenError(f"config.yaml {error}") from error
    except YamlError as error:
        raise BrokenError(f"config.yaml is not valid YAML ({first_line(error)})") from error
    return checked_config(config)


def checked_config(config: Any) -> dict[str, Any]:
    """Check a run's settings.

    Args:
        config: as returned by `~sibp.runs.values.plain`.

    Returns:
        The same.

    Raises:
        BrokenError: optimizer or seed is missing.
    """
    if not isinstance(config, dict):
        raise BrokenError("config.yaml contains no settings")
    optimizer, seed = config.get("optimizer"), config.get("seed")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("name"), str):
        raise BrokenError("config.yaml names no optimizer (optimizer.name)")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < LARGEST_SEED:
        raise BrokenError(f"config.yaml: seed is {shown(seed)}, not a whole number of 0 or more")
    return config


def read_summary(path: Path) -> dict[str, Any]:
    """A run's checked summary; empty if there is none.

    Raises:
        BrokenError: it is damaged.
    """
    text = read_text(path, MAX_SUMMARY)
    if text is None:
        return {}
    try:
        summary = plain(json.loads(text))
    except BrokenError as error:
        raise BrokenError(f"summary.json {error}") from error
    except (ValueError, RecursionError) as error:
        raise BrokenError(f"summary.json is damaged ({first_line(error)})") from error
    return checked_summary(summary)


def checked_summary(summary: Any) -> dict[str, Any]:
    """Check a run's summary.

    Args:
        summary: as returned by `~sibp.runs.values.plain`.

    Returns:
        The same.

    Raises:
        BrokenError: it has no status, or a test metric is impossible.
    """
    if not isinstance(summary, dict):
        raise BrokenError("summary.json is not a mapping")
    if summary.get("status") not in STATUSES:
        raise BrokenError(f"summary.json: status is {shown(summary.get('status'))}, not one of {', '.join(STATUSES)}")
    for key in ("test_loss", "test_acc"):
        try:
            _metric(summary, key)
        except BrokenError as error:
            raise BrokenError(f"summary.json: {error}") from error
    return summary


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The checked rows, and a note where an incomplete last line from a killed process was dropped.

    Raises:
        BrokenError: they are damaged.
    """
    text = read_text(path, MAX_METRICS)
    rows: list[dict[str, Any]] = []
    if text is None:
        return rows, []
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not line and i == len(lines) - 1:
            break
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if i == len(lines) - 1:
                return rows, [f"metrics.jsonl: the last line ({i + 1}) is cut off, and was dropped"]
            raise BrokenError(f"metrics.jsonl is damaged at line {i + 1} ({first_line(error)})") from error
        try:
            rows.append(checked_row(row, rows[-1] if rows else None))
        except BrokenError as error:
            raise BrokenError(f"metrics.jsonl, line {i + 1}: {error}") from error
    return rows, []


def checked_row(row: Any, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check a logged row.

    Args:
        row: as read.
        before: the row before it, checked.

    Returns:
        Step, seconds, metrics (NaN where not finite) and the solver's statistics.

    Raises:
        BrokenError: a value is missing or impossible.
    """
    if not isinstance(row, dict):
        raise BrokenError(f"is {shown(row)}, not an object")
    checked: dict[str, Any] = {}
    for key in COLUMNS:
        checked[key] = _metric(row, key)
    step, seconds = checked["step"], checked["seconds"]
    if not (0 <= step <= LARGEST_STEP and step.is_integer()):
        raise BrokenError(f"step is {shown(row.get('step'))}, not a whole number of 0 or more")
    if not seconds >= 0:
        raise BrokenError(f"seconds is {shown(row.get('seconds'))}, not a number of 0 or more")
    if before and (step <= before["step"] or seconds < before["seconds"]):
        raise BrokenError("steps or seconds go back")
    solver = row.get("solver")
    checked["solver"] = solver if isinstance(solver, dict) else {}
    return checked


def _metric(values: Mapping[str, Any], key: str) -> float:
    """A number, and for an accuracy between 0 and 1; NaN where not finite."""
    try:
        value = number(values.get(key))
    except BrokenError as error:
        raise BrokenError(f"{key} {error}") from error
    if key.endswith("acc") and (value < 0 or value > 1):
        raise BrokenError(f"{key} is {value:g}, not an accuracy between 0 and 1")
    return value


def _complete(rows: list[dict[str, Any]], summary: Mapping[str, Any], notes: list[str]) -> str:
    """Restore a completed run's last row from its copy in the summary, if a damaged disk lost it."""
    final, steps = summary.get("final"), number_or_nan(summary.get("steps"))
    if not rows:
        raise BrokenError("summary.json says completed, but metrics.jsonl is missing or empty")
    if math.isnan(steps) or rows[-1]["step"] >= steps:
        return "completed"
    try:
        row = checked_row(final, rows[-1])
    except BrokenError:
        row = {"step": math.nan}
    if row["step"] != steps:
        notes.append(f"metrics.jsonl ends at step {rows[-1]['step']:g} of {steps:g}: taken as unfinished")
        return UNFINISHED
    rows.append(row)
    notes.append("the last row was taken from summary.json")
    return "completed"


def ends_beyond_reason(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the final training loss is finite but far above the initial one, which counts as divergence.

    Args:
        rows: of a run, each with its ``train_loss``; NaN where none is known.

    Returns:
        True if the last loss is `BEYOND_REASON` times the first, or 1 where the first is smaller.
    """
    losses = [row["train_loss"] for row in rows if not math.isnan(row["train_loss"])]
    return len(losses) > 1 and losses[-1] > BEYOND_REASON * max(1.0, losses[0])


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.array([row[key] for row in rows], dtype=float) for key in COLUMNS}


def _solver(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Layer -> statistic -> (steps, values); non-numbers are omitted."""
    found: defaultdict[str, defaultdict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for layer, stats in row["solver"].items():
            for name, value in stats.items() if isinstance(stats, dict) else ():
                result = number_or_nan(value)
                if not math.isnan(result):
                    found[layer][_OLD_NAMES.get(name) or name].append((row["step"], result))
    return {layer: {name: _arrays(points) for name, points in stats.items()} for layer, stats in found.items()}


def _arrays(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.array(points).T
    return steps, values


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's name."""
    return shown(next(iter(str(error).splitlines()), "") or type(error).__name__)
