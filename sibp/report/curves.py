"""Loss and accuracy against steps and against seconds, with bands over seeds."""

from collections.abc import Sequence

import numpy as np

from sibp.analysis.comparison import Method, Problem
from sibp.report.blocks import Block, Figure, Line, Text
from sibp.runs.reading import Run

MAX_POINTS = 300  # of a line; more cannot be seen
METRICS = ("train_loss", "val_loss", "val_acc")
AXES = {"step": "steps", "seconds": "training seconds"}
CAPTION = (
    "Thick line: median over seeds at equal steps; band: from the smallest to the largest seed; thin lines: the seeds. "
    "Against seconds, a step is drawn at its median time. A cross marks where a run diverged or failed; from there on "
    "it takes no part in median and band. Click a method in the legend to hide it."
)


def curves(problem: Problem, number: str) -> list[Block]:
    """One figure for each metric and axis, over the chosen settings.

    Args:
        problem: the problem.
        number: of the problem in the report.

    Returns:
        The figures and how to read them.
    """
    figures: list[Block] = []
    for metric in METRICS:
        for axis, axis_title in AXES.items():
            lines = [line for method in problem.methods for line in _method_lines(method, axis, metric)]
            if lines:
                title = metric.replace("_", " ")
                name = f"{number}-{metric}-{axis}".replace("_", "-")
                log = metric.endswith("loss")
                figures.append(Figure(name, f"{title} against {axis_title}", axis_title, title, lines, y_log=log))
    if not figures:
        return [Text("No run logged anything to draw.")]
    return [Text(CAPTION), *figures]


def _method_lines(method: Method, axis: str, metric: str) -> list[Line]:
    runs = [run for run in method.runs if not np.isnan(run.columns[metric]).all()]
    lines = [_seed_line(method, run, axis, metric) for run in runs] if len(runs) > 1 else []
    lines += _endings(method, runs, axis, metric)
    if not runs:
        return lines
    steps = thinned(common_steps(runs))
    values, places = (np.array([_at(run, column, steps) for run in runs]) for column in (metric, axis))
    seen = ~np.isnan(values).all(axis=0)
    values, places = values[:, seen], np.where(np.isnan(values), np.nan, places)[:, seen]
    band = (values.copy(), values.copy()) if len(runs) > 1 else None
    low, high = (np.nanmin(band[0], axis=0), np.nanmax(band[1], axis=0)) if band else (None, None)
    middle = np.nanmedian(values, axis=0)
    label = f"{method.name} ({method.chosen.label})" if method.chosen else method.name
    lines.append(Line(label, method.name, np.nanmedian(places, axis=0), middle, low, high, named=True))
    return lines


def _seed_line(method: Method, run: Run, axis: str, metric: str) -> Line:
    keep = thinned(np.arange(len(run.columns["step"])))
    x, y = run.columns[axis][keep], run.columns[metric][keep]
    return Line(f"{method.name}, seed {run.seed}", method.name, x, y, kind="seed")


def _endings(method: Method, runs: Sequence[Run], axis: str, metric: str) -> list[Line]:
    """A cross where a run diverged or failed."""
    ended = [run for run in runs if run.status in ("diverged", "failed")]
    last = [int(np.flatnonzero(~np.isnan(run.columns[metric]))[-1]) for run in ended]
    x = np.array([run.columns[axis][i] for run, i in zip(ended, last, strict=True)])
    y = np.array([run.columns[metric][i] for run, i in zip(ended, last, strict=True)])
    texts = [f"{method.name}, seed {run.seed}: {run.status}" for run in ended]
    return [Line(f"{method.name}: ended here", method.name, x, y, kind="cross", texts=texts)] if ended else []


def common_steps(runs: Sequence[Run]) -> np.ndarray:
    """The steps at which runs can be compared.

    Args:
        runs: at least one.

    Returns:
        Those that every completed run logged (every run, if none completed).
    """
    steps = [run.columns["step"] for run in runs if run.status == "completed"]
    steps = steps or [run.columns["step"] for run in runs]
    shared = steps[0]
    for other in steps[1:]:
        shared = np.intersect1d(shared, other, assume_unique=True)
    return shared


def thinned(values: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` of some values, evenly spread, first and last among them.

    Args:
        values: one-dimensional.

    Returns:
        Some or all of them.
    """
    if len(values) <= MAX_POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, MAX_POINTS).round().astype(int)]


def _at(run: Run, column: str, steps: np.ndarray) -> np.ndarray:
    """A column at some steps, NaN where the run did not log it."""
    logged = run.columns["step"]
    if not len(logged):
        return np.full(len(steps), np.nan)
    places = np.minimum(np.searchsorted(logged, steps), len(logged) - 1)
    return np.where(logged[places] == steps, run.columns[column][places], np.nan)
