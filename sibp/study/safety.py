"""The table of AutoSIBP's runs over all step sizes: initial and final training losses."""

import math
from collections.abc import Sequence

import numpy as np

from sibp.analysis.comparison import Problem
from sibp.analysis.statistics import median
from sibp.analysis.step_sizes import losses
from sibp.report.markdown import lines_of_table
from sibp.study.criteria import Evidence
from sibp.study.experiments import Experiment
from sibp.study.untuned import AUTO

SHOWN = (0.01, 0.1, 1.0, 10.0, 100.0)  # step sizes with a column; the last column covers all step sizes


def safety_table(evidence: Evidence, experiment: Experiment) -> str:
    """One row per part of the experiment, whose name is PROBLEM_INITIALISATION."""
    rows = []
    for part in experiment.commands:
        problem, _, init = part.rpartition("_")
        rows.append([problem.replace("_", " "), init, *safety(evidence.problem(f"{experiment.name}/{part}"))])
    ends = [f"lr {lr:g}" for lr in SHOWN]
    return lines_of_table(["problem", "initialisation", "runs", "start", *ends, "worst end, of its start"], rows)


def safety(problem: Problem) -> Sequence[str]:
    """The number of runs, their first loss, the final losses at `SHOWN`, and the largest ratio of last to first loss.

    Losses are medians over seeds. The final loss of a diverged run is infinite.
    """
    found = list(losses(problem.by_name[AUTO], {}).values())
    pairs = [pair for by_lr in found for pair in by_lr.values()]
    medians = [median([start for start, _ in pairs]), *(median([by_lr[lr][1] for by_lr in found]) for lr in SHOWN)]
    worst = max(end / start if math.isfinite(end) else math.inf for start, end in pairs)
    return [str(len(pairs)), *map(_three_digits, medians), f"{worst:.2f}"]


def _three_digits(value: float) -> str:
    """Without an exponent, so that columns stay aligned."""
    return np.format_float_positional(value, 3, fractional=False, trim="-") if math.isfinite(value) else str(value)
