"""Pictures of the experiments that claims are tried by, as SVG: always the same bytes for the same kept files."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sibp.analysis.comparison import Method, Problem
from sibp.analysis.outcomes import FINAL_LOSS, FINAL_VAL, Quantity, over_runs
from sibp.analysis.statistics import Estimate
from sibp.report.styles import GRID, styles
from sibp.study.criteria import Evidence, OpenError
from sibp.study.experiments import Experiment

ORDER = (
    "sgd",
    "sibp paper",
    "sibp cg:5",
    "proxbp exact",
    "sibp cg:3",
    "sibp exact",
    "adam",
    "sibp cg:20",
    "proxbp cg:5",
)
STYLE: dict[Any, Any] = {"svg.hashsalt": "sibp", "font.size": 9, "text.usetex": False, "axes.axisbelow": True}
CEILING = 3.0  # of losses drawn: guessing has 2.3


def pictures(evidence: Evidence, experiments: Mapping[str, Experiment]) -> dict[str, bytes]:
    """Experiment -> SVG, for those that are kept."""
    found = {}
    for name in experiments:
        if name in DRAWN:
            try:
                found[name] = DRAWN[name](evidence, experiments[name])
            except OpenError:
                continue  # not kept yet
    return found


def _drawn(panels: int, draw: Callable[[Sequence[Axes]], None], height: float = 4.0, sharey: bool = False) -> bytes:
    """A row of panels with one legend below."""
    with rc_context(STYLE):
        canvas = Figure(figsize=(9, height), layout="constrained")
        axes = list(np.atleast_1d(canvas.subplots(1, panels, sharey=sharey)))
        draw(axes)
        for each in axes:
            each.grid(color=GRID, lw=0.5)
        named = dict(pair[::-1] for each in axes for pair in zip(*each.get_legend_handles_labels(), strict=True))
        ordered = sorted(named, key=lambda name: (_place(name), name))
        handles = [named[name] for name in ordered]
        canvas.legend(handles, ordered, loc="outside lower center", ncols=min(7, len(ordered)), frameon=False)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _colour(name: str) -> str:
    return styles([name])[name].colour


def step_sizes(evidence: Evidence, experiment: Experiment) -> bytes:
    """Final loss over the step size, without and with the other hyper-parameters tuned along."""
    problem = evidence.problem(experiment.name)

    def draw(axes: Sequence[Axes]) -> None:
        fixed = {"prox_weight": 1.0, "momentum": 0.0}
        for each, at, title in zip(
            axes,
            (fixed, {}),
            ("proximal weight 1, no momentum", "proximal weight or momentum tuned along"),
            strict=True,
        ):
            for method in problem.methods:
                _over_steps(each, method, at)
            each.set(xscale="log", yscale="log", xlabel="step size", title=title)
        axes[0].set_ylabel("training loss at the end")

    return _drawn(2, draw, sharey=True)


def auto_safe(evidence: Evidence, experiment: Experiment) -> bytes:
    """Final loss over the step size in a deep net, for both initialisations."""
    problems = [evidence.problem(folder) for folder in _folders(experiment)]

    def draw(axes: Sequence[Axes]) -> None:
        for each, problem in zip(axes, problems, strict=True):
            for method in problem.methods:
                _over_steps(each, method, {})
            init = "He's" if problem.config["model"]["init"] == "normal" else "torch's"
            each.set(xscale="log", yscale="log", xlabel="step size", title=f"{init} initial weights")
        axes[0].set_ylabel("training loss at the end")

    return _drawn(2, draw, sharey=True)


def _over_steps(axes: Axes, method: Method, at: Mapping[str, float]) -> None:
    """The best setting at each step size; a cross above where at least half of its runs diverged or got worse."""
    best: dict[float, Estimate] = {}
    for setting in method.settings:
        found = over_runs(setting.runs, FINAL_LOSS.of)
        if found is None or any(setting.numbers.get(key, value) != value for key, value in at.items()):
            continue
        lr = setting.numbers["lr"]
        best[lr] = min(best.get(lr, found), found, key=lambda each: each.median)
    steps = sorted(best)
    _line(axes, method.name, steps, [best[lr] for lr in steps])
    dead = [lr for lr in steps if best[lr].median > CEILING]
    row = CEILING * 1.15 ** (1 + _place(method.name))  # one above the other, so that all are seen
    axes.plot(dead, [row] * len(dead), "x", color=_colour(method.name), ms=4)


def _line(axes: Axes, name: str, x: Sequence[float], found: Sequence[Estimate | None]) -> None:
    """Medians with a band of their 95 % intervals; gaps where there is none, or a loss above the ceiling."""
    drawn = [each if each and -math.inf < each.median <= CEILING else None for each in found]
    y = np.array([(each.median, *_bounds(each)) if each else (math.nan,) * 3 for each in drawn]).reshape(-1, 3)
    axes.plot(x, y[:, 0], "-o", ms=3, color=_colour(name), label=name)
    axes.fill_between(x, y[:, 1], y[:, 2], color=_colour(name), alpha=0.16, lw=0)


def _bounds(found: Estimate) -> tuple[float, float]:
    low, high = found.low, found.high
    return found.median if low is None else low, found.median if high is None else min(high, CEILING)


def depth(evidence: Evidence, experiment: Experiment) -> bytes:
    """Final loss and accuracy over the number of hidden layers, every method tuned at each."""
    by_depth = {_hidden(problem): problem for problem in map(evidence.problem, _folders(experiment))}
    layers = sorted(by_depth)

    def draw(axes: Sequence[Axes]) -> None:
        names = {method.name for problem in by_depth.values() for method in problem.methods}
        for each, quantity in zip(axes, (FINAL_LOSS, FINAL_VAL), strict=True):
            for name in sorted(names):
                _line(each, name, layers, [_of_method(by_depth[count], name, quantity) for count in layers])
            each.set(xlabel="hidden layers", xticks=layers)
        axes[0].set(yscale="log", ylabel="training loss at the end")
        axes[1].set(ylabel="validation accuracy at the end")

    return _drawn(2, draw)


def _folders(experiment: Experiment) -> list[str]:
    return [f"{experiment.name}/{folder}" for folder in experiment.commands]


def _hidden(problem: Problem) -> int:
    return len(problem.config["model"]["hidden"])


def _of_method(problem: Problem, name: str, quantity: Quantity) -> Estimate | None:
    runs = [run for method in problem.methods if method.name == name for run in method.runs]
    return over_runs(runs, quantity.of)


def rounds(evidence: Evidence, experiment: Experiment) -> bytes:
    """Loss, accuracy and cost of a step over the rounds of conjugate gradients; other solvers as level lines."""
    problem = evidence.problem(experiment.name)
    solved = {method.name: method for method in problem.methods}
    counts = sorted(int(name.partition(":")[2]) for name in solved if name.startswith("sibp cg:"))
    level = [name for name in solved if not name.startswith("sibp cg:")]

    def draw(axes: Sequence[Axes]) -> None:
        for each, quantity in zip(axes, (FINAL_LOSS, FINAL_VAL), strict=False):
            for name in level:
                found = _of_method(problem, name, quantity)
                if found and math.isfinite(found.median):
                    each.axhline(found.median, color=_colour(name), ls="--", lw=1, label=name)
                    each.axhspan(*_bounds(found), color=_colour(name), alpha=0.1, lw=0)
            _line(each, "sibp cg:5", counts, [_of_method(problem, f"sibp cg:{k}", quantity) for k in counts])
        seconds = {name: method.step_seconds() or math.nan for name, method in solved.items()}
        axes[2].plot(counts, [1000 * seconds[f"sibp cg:{k}"] for k in counts], "-o", ms=3, color=_colour("sibp cg:5"))
        for name in level:
            axes[2].axhline(1000 * seconds[name], color=_colour(name), ls="--", lw=1)
        for each in axes:
            each.set(xlabel="rounds of conjugate gradients", xscale="log", xticks=counts[::2], xticklabels=counts[::2])
            each.minorticks_off()
            for line in each.get_lines():
                line.set_label("sibp cg:K" if line.get_label() == "sibp cg:5" else line.get_label())
        axes[0].set(yscale="log", ylabel="training loss at the end")
        axes[1].set(ylabel="validation accuracy at the end")
        axes[2].set(yscale="log", ylabel="milliseconds a step")

    return _drawn(3, draw, 3.4)


def stationary(evidence: Evidence, experiment: Experiment) -> bytes:
    """The gradient against the length of a step, on the way to rest."""

    def draw(axes: Sequence[Axes]) -> None:
        for each, activation in zip(axes, ("tanh", "relu"), strict=True):
            for row in evidence.rows(f"{experiment.name}/limits.json", activation):
                path = np.maximum(np.array(row["path"], dtype=float)[:, 1:], 1e-13)  # a step of 0 is drawn at the edge
                style = {"color": _colour(row["method"]), "label": row["method"], "lw": 0.8, "alpha": 0.6}
                each.plot(path[:, 0], path[:, 1], **style)
                each.plot(path[-1:, 0], path[-1:, 1], "o", ms=3, color=_colour(row["method"]))
            each.set(xscale="log", yscale="log", title=activation, xlabel="length of the step, first = 1")
            each.invert_xaxis()
        axes[0].set_ylabel("gradient of the loss, first = 1")

    return _drawn(2, draw, sharey=True)


DRAWN: dict[str, Callable[[Evidence, Experiment], bytes]] = {
    "step_sizes": step_sizes,
    "auto_safe": auto_safe,
    "depth": depth,
    "rounds": rounds,
    "rounds_tuned": rounds,
    "stationary": stationary,
}
