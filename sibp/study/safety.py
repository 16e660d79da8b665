"""The table of AutoSIBP's runs over all step sizes: where they begin and where they end."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sibp.analysis.comparison import Problem
from sibp.analysis.statistics import median
from sibp.analysis.step_sizes import losses
from sibp.report.markdown import lines_of_table
from sibp.study.criteria import Evidence
from sibp.study.experiments import Experiment
from sibp.study.untuned import AUTO

SHOWN = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the step sizes; the worst end is that over all


def tables(evidence: Evidence, experiments: dict[str, Experiment]) -> dict[str, Callable[[str], str]]:
    """Title -> table."""
    return {"safety": partial(safety_table, evidence, experiments)}


def safety_table(evidence: Evidence, experiments: dict[str, Experiment], name: str) -> str:
    """Training losses of AutoSIBP, one row per part of an experiment, which is named PROBLEM_INITIALISATION.

    Args:
        evidence: the kept runs.
        experiments: by name.
        name: of the experiment.

    Raises:
        OpenError: a part is not kept.
    """
    rows = []
    for part in experiments[name].commands:
        problem, _, init = part.rpartition("_")
        rows.append([problem.replace("_", " "), init, *safety(evidence.problem(f"{name}/{part}"))])
    ends = [f"lr {lr:g}" for lr in SHOWN]
    return lines_of_table(["problem", "initialisation", "runs", "start", *ends, "worst end, of its start"], rows)


def safety(problem: Problem) -> Sequence[str]:
    """The number of runs, their first loss, final losses at the step sizes of `SHOWN`, and the largest last / first.

    Losses are medians over seeds; a run that diverged ends at infinity.
    """
    (method,) = (method for method in problem.methods if method.name == AUTO)
    found = list(losses(method, {}).values())
    pairs = [pair for by_lr in found for pair in by_lr.values()]
    starts = median([start for start, _ in pairs])
    ends = [median([by_lr[lr][1] for by_lr in found]) for lr in SHOWN]
    worst = max(end / start if math.isfinite(end) else math.inf for start, end in pairs)
    return [str(len(pairs)), *map(_three_digits, (starts, *ends)), f"{worst:.2f}"]


def _three_digits(value: float) -> str:
    """Without an exponent, so that columns stay aligned."""
    return np.format_float_positional(value, 3, fractional=False, trim="-") if math.isfinite(value) else str(value)
