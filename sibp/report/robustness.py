"""How much a method depends on its step size: final loss over lr."""

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
    tried = {
        method.name: [s for s in method.settings if s.hyper_parameters.get("lr", 0) > 0] for method in problem.methods
    }
    losses = {s: median_over(s.runs, FINAL_LOSS.of) for settings in tried.values() for s in settings}
    finite = [loss for loss in losses.values() if loss is not None and loss < math.inf]
    if not any(len({setting.hyper_parameters["lr"] for setting in settings}) > 1 for settings in tried.values()):
        return []
    ceiling = 2 * max(finite, default=1.0) or 1.0
    lines = []
    for method in problem.methods:
        points = [(s, loss) for s in tried[method.name] if (loss := losses[s]) is not None]
        lines += _method_lines(method, points, ceiling)
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
    texts = []
    for setting, _ in points:
        ended = [f"{setting.count(status)} {status}" for status in ("diverged", "failed") if setting.count(status)]
        texts.append(
            ": ".join(
                [f"{method.name}, {setting.label}", *([f"{', '.join(ended)} of {len(setting.runs)}"] if ended else [])]
            )
        )
    return Line(method.name, method.name, x, y, kind=kind, texts=texts)
