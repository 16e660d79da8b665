"""Solver statistics, layer by layer."""

import numpy as np

from sibp.analysis.comparison import Method, Problem
from sibp.report.blocks import Block, Figure, Line, Text
from sibp.report.curves import thinned
from sibp.runs.values import shown

MAX_STATISTICS, MAX_LAYERS = 20, 40  # more would be illegible; a damaged file can contain any number


def solver_plots(problem: Problem, number: str) -> list[Block]:
    """One figure per solver statistic, one line per method and layer: the median over seeds."""
    methods = [(method, layers) for method in problem.methods if (layers := _layers(method))]
    names = sorted({s for method, _ in methods for run in method.runs for stats in run.solver.values() for s in stats})
    figures: list[Block] = []
    for i, statistic in enumerate(names[:MAX_STATISTICS]):
        lines = [_line(method, layer, statistic) for method, layers in methods for layer in layers]
        title = shown(statistic.replace("_", " "))
        found = [line for line in lines if line]
        figures.append(Figure(f"{number}-solver-{i:02d}", f"{title} of the solver", "steps", title, found))
    if not figures:
        return []
    return [Text("Each layer's solver statistics at the logged steps: medians over seeds."), *figures]


def _layers(method: Method) -> list[str]:
    names = {layer for run in method.runs for layer in run.solver}
    return sorted(names, key=lambda name: (len(name), name))[:MAX_LAYERS]


def _line(method: Method, layer: str, statistic: str) -> Line | None:
    found = [run.solver[layer][statistic] for run in method.runs if statistic in run.solver.get(layer, {})]
    if not found:
        return None
    steps = np.concatenate([steps for steps, _ in found])
    values = np.concatenate([values for _, values in found])
    order = np.argsort(steps, kind="stable")
    places, starts = np.unique(steps[order], return_index=True)
    middles = np.array([np.median(part) for part in np.split(values[order], starts[1:])])
    keep = thinned(np.arange(len(places)))
    label = f"{method.name}, layer {shown(layer)}"
    return Line(label, label, places[keep], middles[keep], named=True)
