"""Loss and accuracy as curves with bands over seeds, and final metrics as dots with intervals."""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import judged_quantities
from sibp.analysis.outcomes import over_runs
from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Block, Figure, Line, Text
from sibp.report.cells import cell_text
from sibp.runs.reading import Run
from sibp.runs.values import number_or_nan

MAX_POINTS = 300  # per line; more are not visible
METRICS = ("train_loss", "val_loss", "val_acc")
STEPS, SECONDS, EPOCHS = "training steps", "training seconds", "epochs"
AXES = (STEPS, SECONDS, EPOCHS)
CAPTION = (
    "Thick lines are medians over seeds at equal steps; bands span the smallest to the largest value. Against seconds, "
    "each step is drawn at its median time. A cross marks where a run diverged or failed; median and band omit the run "
    "from there on."
)


def curves(problem: Problem, number: str) -> list[Block]:
    """One figure per metric over the chosen settings, with every horizontal axis, and a caption."""
    figures: list[Block] = []
    for metric in METRICS:
        lines = [line for method in problem.methods for line in _method_lines(method, metric)]
        if any(len(line.x) for line in lines):
            title = metric.replace("_", " ")
            name = f"{number}-{metric}".replace("_", "-").removeprefix("-")
            log = metric.endswith("loss")
            figures.append(Figure(name, title, STEPS, title, lines, y_log=log, curves=True))
    if not figures:
        return [Text("No run logged a metric.")]
    return [*figures, Text(CAPTION)]


def interval(name: str, row: int, found: Estimate, detail: str = "", muted: bool = False) -> Line:
    """A median with its interval, in one row of a figure."""
    x, low, high = (np.array([found.median if math.isinf(end) else end]) for end in (found.median, *found.ends))
    tooltip, y = [f"{name}: {cell_text(found)}, {found.count} seeds"], np.array([float(row)])
    return Line(name, name, x, y, low, high, "interval", tooltip, named=True, detail=detail, muted=muted)


def intervals(problem: Problem, number: str) -> list[Figure]:
    """One figure per metric: a dot with a 95 % interval for each method that has a finite median."""
    figures = []
    for quantity in (*judged_quantities(problem), problem.quantities[2]):
        rows, lines = [], []
        for method in problem.methods:
            found = over_runs(method.runs, quantity.of)
            if found is None or not math.isfinite(found.median):
                continue
            lines.append(interval(method.name, len(rows), found, method.label or ""))
            rows.append(method.name)
        if lines:
            bounds = np.array([[line.low, line.high] for line in lines])
            log = not quantity.larger_is_better and bool(0 < 10 * bounds.min() < bounds.max())
            name = f"{number}-interval-{quantity.key.replace('_', '-')}"
            figures.append(Figure(name, f"{quantity.title} (95 % interval)", quantity.title, "", lines, log, rows=rows))
    return figures


def _method_lines(method: Method, metric: str) -> list[Line]:
    runs = [run for run in method.runs if not np.isnan(run.columns[metric]).all()]
    if not runs:
        return []
    lines = [_seed_line(method, run, metric) for run in runs] if len(runs) > 1 else []
    lines += _endings(method, runs, metric)
    steps = thinned(common_steps(runs))
    values = np.array([_values_at(run, run.columns[metric], steps) for run in runs])
    seen = ~np.isnan(values).all(axis=0)
    values = values[:, seen]
    places = {}
    for title in AXES:
        each = np.array([_values_at(run, _axis(run, title), steps) for run in runs])[:, seen]
        each = np.where(np.isnan(values), np.nan, each)
        places[title] = (
            np.nanmedian(each, axis=0) if not np.isnan(each).all(axis=0).any() else np.full(seen.sum(), np.nan)
        )
    low, high = (np.nanmin(values, axis=0), np.nanmax(values, axis=0)) if len(runs) > 1 else (None, None)
    middle = np.nanmedian(values, axis=0)
    name, x, detail = method.name, places.pop(STEPS), method.label or ""
    return [*lines, Line(name, name, x, middle, low, high, named=True, detail=detail, also=places)]


def _seed_line(method: Method, run: Run, metric: str) -> Line:
    keep = thinned(np.flatnonzero(~np.isnan(run.columns[metric])))
    x, y = run.columns["step"][keep], run.columns[metric][keep]
    also = {title: _axis(run, title)[keep] for title in AXES if title != STEPS}
    return Line(method.name, method.name, x, y, kind="seed", detail=_who(method, run), also=also)


def _who(method: Method, run: Run) -> str:
    """A run's hyper-parameters, if any, and its seed."""
    return ", ".join(filter(None, (method.label, f"seed {run.seed}")))


def _axis(run: Run, title: str) -> np.ndarray:
    """The positions of a run's rows on an axis; NaN if the number of epochs is unknown."""
    if title != EPOCHS:
        return run.columns["step" if title == STEPS else "seconds"]
    final = run.summary.get("final")
    epochs, steps = (number_or_nan(final.get(key) if isinstance(final, dict) else None) for key in ("epoch", "step"))
    return run.columns["step"] * (epochs / steps if steps > 0 else math.nan)


def _endings(method: Method, runs: Sequence[Run], metric: str) -> list[Line]:
    """A cross where a run diverged or failed."""
    ended = [run for run in runs if run.status in ("diverged", "failed")]
    last = [int(np.flatnonzero(~np.isnan(run.columns[metric]))[-1]) for run in ended]
    if not ended:
        return []
    y = np.array([run.columns[metric][i] for run, i in zip(ended, last, strict=True)])
    at = {title: np.array([_axis(run, title)[i] for run, i in zip(ended, last, strict=True)]) for title in AXES}
    texts = [f"{method.name}, {_who(method, run)}: {run.status}" for run in ended]
    return [Line(f"{method.name}: ended here", method.name, at.pop(STEPS), y, kind="cross", texts=texts, also=at)]


def common_steps(runs: Sequence[Run]) -> np.ndarray:
    """The steps that every completed run logged (every run, if none completed)."""
    completed = [run for run in runs if run.status == "completed"]
    return reduce(np.intersect1d, [run.columns["step"] for run in completed or runs])


def thinned(values: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` of the values, evenly spaced, including the first and the last."""
    if len(values) <= MAX_POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, MAX_POINTS).round().astype(int)]


def _values_at(run: Run, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The values of a run's rows at the given steps; NaN at steps that the run did not log."""
    logged = run.columns["step"]
    if not len(logged):
        return np.full(len(steps), np.nan)
    places = np.minimum(np.searchsorted(logged, steps), len(logged) - 1)
    return np.where(logged[places] == steps, values[places], np.nan)


def overview(problem: Problem) -> list[tuple[Figure, str]]:
    """The problem in one picture: training loss over steps and seconds, and final metrics."""
    losses = [block for block in curves(problem, "") if isinstance(block, Figure)][:1]
    ends = intervals(problem, "")[:2]
    return [
        *((figure, axis) for figure in losses for axis in (STEPS, SECONDS)),
        *((each, each.x_title) for each in ends),
    ]
