"""Pictures of experiments and of the arena, as reproducible SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from sibp.analysis.arena import Standing
from sibp.analysis.comparison import Problem
from sibp.analysis.outcomes import FINAL_LOSS, FINAL_VAL, Quantity, over_runs
from sibp.analysis.statistics import Estimate
from sibp.report.arena_page import profiles, scores
from sibp.report.blocks import Figure, Line
from sibp.report.curves import overview
from sibp.report.pictures import picture
from sibp.study.criteria import Evidence, OpenError
from sibp.study.experiments import Experiment

CEILING = 3.0  # largest loss drawn; guessing has a loss of 2.3
LOSS, ACCURACY = "training loss at the end", "validation accuracy at the end"
FIXED = {"prox_weight": 1.0, "momentum": 0.0}


def pictures(evidence: Evidence, experiments: Mapping[str, Experiment]) -> dict[str, bytes]:
    """``{experiment: SVG}`` for the kept ones."""
    found = {}
    for name in (name for name in experiments if name in DRAWN):
        with suppress(OpenError):  # its runs are not kept yet
            panels = [(figure, figure.x_title) for figure in DRAWN[name](evidence, experiments[name])]
            found[name] = picture(panels, "svg", columns=len(panels), seeds=True)
    return found


def outline(problems: Sequence[Problem]) -> bytes | None:
    """Curves and final metrics of one problem, or training losses of several, as SVG; None if there are no curves."""
    panels = overview(problems[0]) if len(problems) == 1 else []
    for problem in problems if len(problems) > 1 else ():
        for figure, axis in overview(problem)[:1]:
            lines = [replace(line, detail="") for line in figure.lines]  # settings differ from problem to problem
            panels.append((replace(figure, title=problem.title, lines=lines), axis))
    return picture(panels, "svg") if panels else None


def arena_picture(table: Sequence[Standing]) -> bytes:
    """Scores and performance profiles for the validation target, in steps and in seconds, as SVG."""
    return picture([(figure, figure.x_title) for figure in (*scores(table)[:2], *profiles(table)[:2])], "svg")


def step_sizes(evidence: Evidence, experiment: Experiment) -> list[Figure]:
    """Final loss over the step size, with the other hyper-parameters fixed, and tuned."""
    problem = evidence.problem(experiment.name)
    return [
        _over_steps(problem, "proximal weight 1, no momentum", FIXED),
        _over_steps(problem, "proximal weight or momentum tuned", {}),
    ]


def auto_safe(evidence: Evidence, experiment: Experiment) -> list[Figure]:
    """Final loss over the step size in a deep net, for both initialisations."""
    titles = {"normal": "He's initial weights", "default": "torch's initial weights"}
    problems = _parts(evidence, experiment)
    return [_over_steps(problem, titles[problem.config["model"]["init"]], {}) for problem in problems]


def _parts(evidence: Evidence, experiment: Experiment) -> list[Problem]:
    return [evidence.problem(f"{experiment.name}/{folder}") for folder in experiment.commands]


def _over_steps(problem: Problem, title: str, at: Mapping[str, float]) -> Figure:
    """The best setting at each step size; a cross at the top if its median loss is infinite or above `CEILING`."""
    lines = []
    for i, method in enumerate(problem.methods):
        best: dict[float, Estimate] = {}
        for setting in method.settings:
            found = over_runs(setting.runs, FINAL_LOSS.of)
            if found is None or any(setting.hyper_parameters.get(key, value) != value for key, value in at.items()):
                continue
            lr = setting.hyper_parameters["lr"]
            best[lr] = min(best.get(lr, found), found, key=lambda each: each.median)
        steps = sorted(best)
        failed = np.array([lr for lr in steps if best[lr].median > CEILING])
        row = np.full(len(failed), CEILING * 1.15 ** (1 + i))  # one row per method, so that all are visible
        lines += [_line(method.name, steps, [best[lr] for lr in steps])]
        lines += [Line(method.name, method.name, failed, row, kind="cross")]
    return Figure(title, title, "step size", LOSS, lines, x_log=True, y_log=True)


def _line(
    name: str, x: Sequence[float], found: Sequence[Estimate | None], label: str = "", ceiling: float = CEILING
) -> Line:
    """Medians with a band of their 95 % intervals; gaps where the median is missing or above the ceiling."""
    rows = np.full((len(x), 3), math.nan)
    for row, each in zip(rows, found, strict=True):
        if each and -math.inf < each.median <= ceiling:
            row[:] = (each.median, *(min(end, ceiling) for end in each.ends))
    middle, low, high = rows.T
    return Line(label or name, name, np.array(x, dtype=float), middle, low, high, named=True)


def depth(evidence: Evidence, experiment: Experiment) -> list[Figure]:
    """Final loss and accuracy over the number of hidden layers; every method is tuned at each number."""
    by_depth = {len(problem.config["model"]["hidden"]): problem for problem in _parts(evidence, experiment)}
    layers = sorted(by_depth)
    names = sorted({method.name for problem in by_depth.values() for method in problem.methods})
    found = []
    for quantity, title in ((FINAL_LOSS, LOSS), (FINAL_VAL, ACCURACY)):
        lines = [_line(name, layers, [_of(by_depth[n], name, quantity) for n in layers]) for name in names]
        found.append(Figure(title, "", "hidden layers", title, lines, y_log=quantity is FINAL_LOSS))
    return found


def _of(problem: Problem, name: str, quantity: Quantity) -> Estimate | None:
    method = problem.by_name.get(name)
    return method.over_seeds(quantity) if method else None


def iterations(evidence: Evidence, experiment: Experiment) -> list[Figure]:
    """Loss, accuracy and step cost over CG iterations; other solvers as horizontal lines."""
    problem = evidence.problem(experiment.name)
    solved = problem.by_name
    counts = sorted(int(name.partition(":")[2]) for name in solved if name.startswith("sibp cg:"))
    level = [name for name in solved if not name.startswith("sibp cg:")]
    ends = [float(counts[0]), float(counts[-1])]
    measures: dict[str, Callable[[str], Estimate | None]] = {
        LOSS: lambda name: _of(problem, name, FINAL_LOSS),
        ACCURACY: lambda name: _of(problem, name, FINAL_VAL),
        "milliseconds per step": lambda name: (
            None if (seconds := solved[name].step_seconds()) is None else Estimate(1000 * seconds, None, None, 1)
        ),
    }
    found = []
    for title, of in measures.items():
        ceiling = CEILING if title == LOSS else math.inf
        lines = [_line(name, ends, [of(name)] * 2, ceiling=ceiling) for name in level]
        lines.append(_line("sibp cg:5", counts, [of(f"sibp cg:{k}") for k in counts], "sibp cg:K", ceiling))
        axis = "iterations K of conjugate gradients"
        found.append(Figure(title, "", axis, title, lines, x_log=True, y_log=title != ACCURACY))
    return found


def stationary(evidence: Evidence, experiment: Experiment) -> list[Figure]:
    """Gradient norm over step length during convergence."""
    found = []
    for activation in ("tanh", "relu"):
        lines = []
        for row in evidence.rows(f"{experiment.name}/limits.json", activation):
            x, y = np.maximum(np.array(row["path"], dtype=float)[:, 1:], 1e-13).T  # a step of 0 is drawn at the edge
            name = row["method"]
            lines += [Line(name, name, x, y, kind="seed"), Line(name, name, x[-1:], y[-1:], kind="points", named=True)]
        axes = "length of the step, first = 1", "gradient of the loss, first = 1"
        found.append(Figure(activation, activation, *axes, lines, x_log=True, y_log=True))
    return found


DRAWN: dict[str, Callable[[Evidence, Experiment], list[Figure]]] = {
    "step_sizes": step_sizes,
    "auto_safe": auto_safe,
    "depth": depth,
    "rounds": iterations,
    "rounds_tuned": iterations,
    "stationary": stationary,
}
