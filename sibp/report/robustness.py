"""Sensitivity to the learning rate: final training loss over lr."""

import math

import numpy as np

from sibp.analysis.comparison import Method, Problem, Setting
from sibp.analysis.outcomes import FINAL_LOSS, median_over
from sibp.report.blocks import Block, Figure, Line, Text

CAPTION = (
    "One dot per setting: the median final training loss over its seeds. The line connects the best setting at each "
    "learning rate. A cross marks a setting with a diverged or failed run; at the top edge, at least half of its runs "
    "diverged or failed."
)


def robustness(problem: Problem, number: str) -> list[Block]:
    """Final training loss over the learning rate, with a caption; nothing if no method tried several."""
    if not any(sum(lr > 0 for lr in method.grid("lr")) > 1 for method in problem.methods):
        return []
    tried: dict[Method, list[tuple[Setting, float]]] = {method: [] for method in problem.methods}
    for method in problem.methods:
        for setting in method.settings:
            loss = median_over(setting.runs, FINAL_LOSS.of)
            if setting.hyper_parameters.get("lr", 0) > 0 and loss is not None:
                tried[method].append((setting, loss))
    finite = [loss for points in tried.values() for _, loss in points if loss < math.inf]
    ceiling = 2 * max(finite, default=1.0) or 1.0
    lines = [line for method, points in tried.items() for line in _method_lines(method, points, ceiling)]
    title = "final train loss over learning rate"
    return [Text(CAPTION), Figure(f"{number}-robustness", title, "lr", "final train loss", lines, True, True)]


def _method_lines(method: Method, points: list[tuple[Setting, float]], ceiling: float) -> list[Line]:
    if not points:
        return []
    best: dict[float, float] = {}
    for setting, loss in points:
        lr = setting.hyper_parameters["lr"]
        best[lr] = min(loss, best.get(lr, math.inf))
    x = np.array(sorted(best))
    y = np.array([min(best[lr], ceiling) for lr in x])
    bad = [(s, loss) for s, loss in points if s.count("diverged") + s.count("failed")]
    return [
        Line(method.name, method.name, x, y, named=True),
        _marks(method, points, ceiling, "points"),
        *([_marks(method, bad, ceiling, "cross")] if bad else []),
    ]


def _marks(method: Method, points: list[tuple[Setting, float]], ceiling: float, kind: str) -> Line:
    x = np.array([setting.hyper_parameters["lr"] for setting, _ in points])
    y = np.array([min(loss, ceiling) for _, loss in points])
    texts = [f"{method.name}, {setting.label}{_ended(setting)}" for setting, _ in points]
    return Line(method.name, method.name, x, y, kind=kind, texts=texts)


def _ended(setting: Setting) -> str:
    """Such as ``: 2 diverged, 1 failed of 5``; empty if all runs completed."""
    found = [f"{setting.count(status)} {status}" for status in ("diverged", "failed") if setting.count(status)]
    return f": {', '.join(found)} of {len(setting.runs)}" if found else ""
