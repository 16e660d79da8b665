"""Many runs in one file, ``runs.jsonl``, small enough to be kept in the repository.

The first line contains the entries that all runs share. Every other line is a run, ``{"run": folder name, "config":
..., "summary": ..., "rows": column -> list, "solver": layer -> statistic -> list}``, without the shared entries. A line
keeps all settings, the whole summary, and at most `ROWS` evenly spaced logged rows, including the first and the last,
rounded to `DIGITS` digits, which is what single precision resolves. Solver statistics are kept for at most `LAYERS`
evenly spaced layers, rounded to `SOLVER_DIGITS` digits. Checkpoints, host, command and paths are omitted.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from sibp.runs.reading import (
    COLUMNS,
    MAX_METRICS,
    Run,
    checked_config,
    checked_row,
    checked_summary,
    first_line,
    read_text,
    run_of,
)
from sibp.runs.values import BrokenError, plain, shown

PACKED = "runs.jsonl"
ROWS, DIGITS, LAYERS, SOLVER_DIGITS = 26, 8, 8, 4
LONGEST_FILE_NAME = 255  # bytes
PLACES = {"data_root": "data", "run_root": "runs"}


def pack(runs: Iterable[Run]) -> str:
    """Write runs as lines.

    Args:
        runs: one or more, as read from their folders.

    Returns:
        The content of ``runs.jsonl``, runs in the order of their names.
    """
    lines = [_line(run) for run in sorted(runs, key=lambda run: run.path.name)]
    shared = {key: value for key, value in reduce(common, lines).items() if key != "run"}
    return "".join(
        json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"
        for line in [shared, *(less(line, shared) for line in lines)]
    )


def _line(run: Run) -> dict[str, Any]:
    summary = dict(run.summary)
    if isinstance(summary.get("environment"), dict):
        summary["environment"] = _without_host(summary["environment"])
    if isinstance(earlier := summary.get("earlier_environments"), list):
        summary["earlier_environments"] = [_without_host(each) for each in earlier if isinstance(each, dict)]
    count = len(run.columns["step"])
    kept = _spread_positions(count, ROWS)
    rows = {name: [_number(value, DIGITS) for value in run.columns[name][kept].tolist()] for name in COLUMNS}
    line = {"run": run.path.name, "config": run.config | PLACES, "summary": _rounded(summary), "rows": rows}
    return line | ({"solver": _solver(run, rows["step"])} if run.solver else {})


def _without_host(environment: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in environment.items() if key not in ("host", "command")}


def _solver(run: Run, steps: Sequence[float | int | None]) -> dict[str, dict[str, list[float | int | None]]]:
    """Solver statistics at some steps, null where not logged."""

    def at_steps(logged: np.ndarray, values: np.ndarray) -> list[float | int | None]:
        known = dict(zip(logged.tolist(), values.tolist(), strict=True))
        return [_number(known.get(step, math.nan), SOLVER_DIGITS) for step in steps]

    layers = [list(run.solver)[place] for place in _spread_positions(len(run.solver), LAYERS)]
    return {layer: {name: at_steps(*found) for name, found in run.solver[layer].items()} for layer in layers}


def _spread_positions(count: int, most: int) -> np.ndarray:
    """At most ``most`` evenly spaced positions out of ``count``, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def _number(value: float, digits: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.{digits}g}")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def common(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The entries that two nested mappings share.

    Example:
        >>> common({"x": {"y": 1, "z": 2}, "u": 3}, {"x": {"y": 1, "z": 0}, "v": 3})
        {'x': {'y': 1}}
    """
    both = {k: (a[k], b[k]) for k in a if k in b and type(a[k]) is type(b[k])}
    return {
        k: common(x, y) if isinstance(x, dict) else x for k, (x, y) in both.items() if isinstance(x, dict) or x == y
    }


def less(a: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping without its shared entries; the inverse of `joined`.

    Example:
        >>> less({"x": {"y": 1, "z": 2}, "u": 3}, {"x": {"y": 1}})
        {'x': {'z': 2}, 'u': 3}
    """
    return {
        k: less(v, shared[k]) if isinstance(v, dict) and k in shared else v
        for k, v in a.items()
        if k not in shared or isinstance(v, dict)
    }


def joined(shared: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """Two nested mappings merged; ``rest`` takes precedence.

    Example:
        >>> joined({"x": {"y": 1}}, {"x": {"z": 2}, "u": 3})
        {'x': {'y': 1, 'z': 2}, 'u': 3}
    """
    both = {k: joined(shared[k], v) for k, v in rest.items() if isinstance(v, dict) and isinstance(shared.get(k), dict)}
    return shared | rest | both


def read_packed(path: Path) -> list[Run]:
    """Read a file of packed runs.

    Args:
        path: a ``runs.jsonl``; a run's path is that of a sibling folder, which need not exist.

    Returns:
        The runs.

    Raises:
        BrokenError: it holds no runs, or a line is not a usable run; says which and why.
    """
    try:
        lines = (read_text(path, MAX_METRICS) or "").splitlines()
    except BrokenError as error:
        raise BrokenError(f"it cannot be used: {error}") from error
    if len(lines) < 2:
        raise BrokenError("it holds no runs")
    parsed, runs = [], []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise BrokenError("is not an object")
            parsed.append(line)
            if number > 1:
                runs.append(_run(joined(parsed[0], line), path.parent))
        except BrokenError as error:
            raise BrokenError(f"line {number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise BrokenError(f"line {number} is damaged ({first_line(error)})") from error
    return runs


def _run(line: dict[str, Any], folder: Path) -> Run:
    name = line.get("run")
    if not isinstance(name, str) or not name or "/" in name or len(name.encode(errors="replace")) > LONGEST_FILE_NAME:
        raise BrokenError("names no run")
    columns = line.get("rows")
    if not isinstance(columns, dict) or not all(isinstance(columns.get(name), list) for name in COLUMNS):
        raise BrokenError(f"rows are not lists of {', '.join(COLUMNS)}")
    if len({len(columns[name]) for name in COLUMNS}) > 1:
        raise BrokenError("rows differ in length")
    config, summary = checked_config(plain(line.get("config"))), checked_summary(plain(line.get("summary")))
    rows: list[dict[str, Any]] = []
    solver = line.get("solver")
    for i, values in enumerate(zip(*(columns[name] for name in COLUMNS), strict=True)):
        row = dict(zip(COLUMNS, values, strict=True)) | {"solver": _at_row(solver, i)}
        rows.append(checked_row(row, rows[-1] if rows else None))
    return run_of(folder / shown(name), config, summary, rows, [])


def _at_row(solver: Any, i: int) -> dict[str, dict[str, Any]]:
    layers = solver.items() if isinstance(solver, dict) else ()
    return {
        str(layer): {name: values[i] for name, values in stats.items() if isinstance(values, list) and i < len(values)}
        for layer, stats in layers
        if isinstance(stats, dict)
    }


def rows_of(run: Run) -> list[dict[str, Any]]:
    """A run's rows as it logged them, except for what packing omits.

    Args:
        run: as returned by `read_packed`.

    Returns:
        One mapping per logged step: `COLUMNS`, and ``solver`` where known.
    """
    values = [run.columns[name].tolist() for name in COLUMNS]
    rows: list[dict[str, Any]] = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*values, strict=True)]
    for layer, stats in run.solver.items():
        for name, (steps, values) in stats.items():
            found = dict(zip(steps.tolist(), values.tolist(), strict=True))
            for row in rows:
                if row["step"] in found:
                    row.setdefault("solver", {}).setdefault(layer, {})[name] = found[row["step"]]
    return rows
