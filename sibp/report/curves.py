"""Figures of a problem: curves over training, final metrics, sensitivity to the learning rate, solver statistics."""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import groupby

import numpy as np

from sibp.analysis.comparison import Method, Problem, Setting
from sibp.analysis.duels import judged_quantities
from sibp.analysis.outcomes import FINAL_LOSS, median_over
from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Block, Figure, Line, Text
from sibp.report.cells import cell_text
from sibp.runs.reading import Run
from sibp.runs.values import number_or_nan, shown

MAX_POINTS = 300  # per line; more are not visible
MAX_STATISTICS, MAX_LAYERS = 20, 40  # more would be illegible; a damaged file can contain any number
METRICS = ("train_loss", "val_loss", "val_acc")
STEPS, SECONDS, EPOCHS = "training steps", "training seconds", "epochs"
OVER_TIME = (
    "Thick lines are medians over seeds at equal steps; bands span the smallest to the largest value. Against seconds, "
    "each step is drawn at its median time. A cross marks where a run diverged or failed; median and band omit the run "
    "from there on."
)
OVER_RATES = (
    "One dot per setting: the median final training loss over its seeds. The line connects the best setting at each "
    "learning rate. A cross marks a setting with a diverged or failed run; at the top edge, at least half of its runs "
    "diverged or failed."
)


def overview(problem: Problem) -> list[tuple[Figure, str]]:
    """The problem in one picture: training loss over steps and seconds, and final metrics."""
    losses = [block for block in curves(problem, "") if isinstance(block, Figure)][:1]
    ends = intervals(problem, "")[:2]
    return [*((each, axis) for each in losses for axis in (STEPS, SECONDS)), *((each, each.x_title) for each in ends)]


def curves(problem: Problem, number: str) -> list[Block]:
    """One figure per metric over the chosen settings, with every horizontal axis, and a caption."""
    figures: list[Block] = []
    for metric in METRICS:
        lines = [line for method in problem.methods for line in _curves_of(method, metric)]
        if any(len(line.x) for line in lines):
            title = metric.replace("_", " ")
            name = f"{number}-{metric}".replace("_", "-").removeprefix("-")
            log = metric.endswith("loss")
            figures.append(Figure(name, title, STEPS, title, lines, y_log=log, curves=True))
    return [*figures, Text(OVER_TIME)] if figures else [Text("No run logged a metric.")]


def _curves_of(method: Method, metric: str) -> list[Line]:
    """A line for each of several seeds, a cross where a run diverged or failed, and the median with its band."""
    logged = {run: np.flatnonzero(~np.isnan(run.columns[metric])) for run in method.runs}
    logged = {run: rows for run, rows in logged.items() if len(rows)}
    if not logged:
        return []
    name, setting, runs = method.name, method.label or "", list(logged)
    who = {run: ", ".join(filter(None, (setting, f"seed {run.seed}"))) for run in runs}
    lines = []
    for run, rows in logged.items() if len(runs) > 1 else ():
        keep = thinned(rows)
        at = {title: places[keep] for title, places in _axes(run).items()}
        y = run.columns[metric][keep]
        lines.append(Line(name, name, at.pop(STEPS), y, kind="seed", detail=who[run], also=at))
    if ended := {run: rows[-1] for run, rows in logged.items() if run.status in ("diverged", "failed")}:
        at = {title: np.array([_axes(run)[title][row] for run, row in ended.items()]) for title in _axes(runs[0])}
        y = np.array([run.columns[metric][row] for run, row in ended.items()])
        texts = [f"{name}, {who[run]}: {run.status}" for run in ended]
        lines.append(Line(f"{name}: ended here", name, at.pop(STEPS), y, kind="cross", texts=texts, also=at))
    steps = thinned(common_steps(runs))
    values = np.array([_values_at(run, run.columns[metric], steps) for run in runs])
    seen = ~np.isnan(values).all(axis=0)
    steps, values, also = steps[seen], values[:, seen], {}
    for title in (SECONDS, EPOCHS):
        places = np.array([_values_at(run, _axes(run)[title], steps) for run in runs])
        places[np.isnan(values)] = np.nan
        known = not np.isnan(places).all(axis=0).any()
        also[title] = np.nanmedian(places, axis=0) if known else np.full(len(steps), np.nan)
    low, high = (np.nanmin(values, axis=0), np.nanmax(values, axis=0)) if len(runs) > 1 else (None, None)
    middle = np.nanmedian(values, axis=0)
    return [*lines, Line(name, name, steps, middle, low, high, named=True, detail=setting, also=also)]


def _axes(run: Run) -> dict[str, np.ndarray]:
    """Title of an axis -> the positions of a run's rows; NaN if the number of epochs is unknown."""
    final, step = run.summary.get("final"), run.columns["step"]
    epochs, steps = (number_or_nan(final.get(key) if isinstance(final, dict) else None) for key in ("epoch", "step"))
    return {STEPS: step, SECONDS: run.columns["seconds"], EPOCHS: step * (epochs / steps if steps > 0 else math.nan)}


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
    places = np.minimum(np.searchsorted(logged, steps), len(logged) - 1)
    return np.where(logged[places] == steps, values[places], np.nan)


def interval(name: str, row: int, found: Estimate, detail: str = "", muted: bool = False) -> Line:
    """A median with its interval, in one row of a figure."""
    x, low, high = (np.array([found.median if math.isinf(end) else end]) for end in (found.median, *found.ends))
    tooltip, y = [f"{name}: {cell_text(found)}, {found.count} seeds"], np.array([float(row)])
    return Line(name, name, x, y, low, high, "interval", tooltip, named=True, detail=detail, muted=muted)


def intervals(problem: Problem, number: str) -> list[Figure]:
    """One figure per metric: a dot with a 95 % interval for each method that has a finite median."""
    figures = []
    for quantity in (*judged_quantities(problem), problem.quantities[2]):
        lines: list[Line] = []
        for method in problem.methods:
            found = method.over_seeds(quantity)
            if found and math.isfinite(found.median):
                lines.append(interval(method.name, len(lines), found, method.label or ""))
        if lines:
            bounds = np.array([[line.low, line.high] for line in lines])
            log = not quantity.larger_is_better and bool(0 < 10 * bounds.min() < bounds.max())
            name = f"{number}-interval-{quantity.key.replace('_', '-')}"
            title, rows = f"{quantity.title} (95 % interval)", [line.label for line in lines]
            figures.append(Figure(name, title, quantity.title, "", lines, log, rows=rows))
    return figures


def robustness(problem: Problem, number: str) -> list[Block]:
    """Final training loss over the learning rate, with a caption; nothing if no method tried several."""
    if not any(sum(lr > 0 for lr in method.grid("lr")) > 1 for method in problem.methods):
        return []
    tried = [
        (method.name, lr, loss, setting)
        for method in problem.methods
        for setting in method.settings
        if (lr := setting.hyper_parameters.get("lr", 0)) > 0
        and (loss := median_over(setting.runs, FINAL_LOSS.of)) is not None
    ]
    ceiling = 2 * max((loss for _, _, loss, _ in tried if loss < math.inf), default=1.0) or 1.0
    lines: list[Line] = []
    for name, group in groupby(tried, key=lambda each: each[0]):
        points = [(lr, min(loss, ceiling), setting) for _, lr, loss, setting in group]
        best = {rate: min(loss for lr, loss, _ in points if lr == rate) for rate in sorted({lr for lr, _, _ in points})}
        lines.append(Line(name, name, np.array(list(best)), np.array(list(best.values())), named=True))
        lines.append(_marks(name, points, "points"))
        if ended := [point for point in points if _ended(point[2])]:
            lines.append(_marks(name, ended, "cross"))
    title = "final train loss over learning rate"
    return [Text(OVER_RATES), Figure(f"{number}-robustness", title, "lr", "final train loss", lines, True, True)]


def _marks(name: str, points: Sequence[tuple[float, float, Setting]], kind: str) -> Line:
    x, y = (np.array(column) for column in list(zip(*points, strict=True))[:2])
    texts = [f"{name}, {setting.label}{_ended(setting)}" for _, _, setting in points]
    return Line(name, name, x, y, kind=kind, texts=texts)


def _ended(setting: Setting) -> str:
    """Such as ``: 2 diverged, 1 failed of 5``; empty if no run diverged or failed."""
    found = [f"{count} {status}" for status in ("diverged", "failed") if (count := setting.count(status))]
    return f": {', '.join(found)} of {len(setting.runs)}" if found else ""


def solver_plots(problem: Problem, number: str) -> list[Block]:
    """One figure per solver statistic, one line per method and layer: the median over seeds."""
    names = sorted({name for run in problem.shown_runs for stats in run.solver.values() for name in stats})
    figures: list[Block] = []
    for i, statistic in enumerate(names[:MAX_STATISTICS]):
        lines = [line for method in problem.methods for line in _solver_lines(method, statistic)]
        title = shown(statistic.replace("_", " "))
        figures.append(Figure(f"{number}-solver-{i:02d}", f"{title} of the solver", "steps", title, lines))
    caption = Text("Each layer's solver statistics at the logged steps: medians over seeds.")
    return [caption, *figures] if figures else []


def _solver_lines(method: Method, statistic: str) -> list[Line]:
    layers = sorted({layer for run in method.runs for layer in run.solver}, key=lambda name: (len(name), name))
    lines = []
    for layer in layers[:MAX_LAYERS]:
        found = [run.solver[layer][statistic] for run in method.runs if statistic in run.solver.get(layer, {})]
        if found:
            steps, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
            places = thinned(np.unique(steps))
            medians = np.array([np.median(values[steps == place]) for place in places])
            label = f"{method.name}, layer {shown(layer)}"
            lines.append(Line(label, label, places, medians, named=True))
    return lines
