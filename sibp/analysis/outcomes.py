"""Metrics of one run, by the rules of report/rules.html."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sibp.analysis.statistics import Estimate, estimate, median
from sibp.runs.reading import UNFINISHED, Run
from sibp.runs.values import number_or_nan


@dataclass(frozen=True)
class Quantity:
    """A metric of a run by which methods are compared."""

    key: str
    title: str
    larger_is_better: bool
    of: Callable[[Run], float | None]

    @property
    def sign(self) -> int:
        """The factor that makes smaller values better."""
        return -1 if self.larger_is_better else 1


@dataclass(frozen=True)
class Target:
    """A value of a logged metric to be reached."""

    column: str
    value: float

    @property
    def larger_is_better(self) -> bool:
        """True for an accuracy."""
        return self.column.endswith("acc")

    @property
    def title(self) -> str:
        """Such as ``val acc ≥ 0.95``."""
        return f"{self.column.replace('_', ' ')} {'≥' if self.larger_is_better else '≤'} {self.value:g}"


def _worst(column: str) -> float:
    """The value of a run that diverged or failed."""
    return -math.inf if column.endswith("acc") else math.inf


def final(run: Run, column: str) -> float | None:
    """The last logged value of a metric; None if the run is unfinished or never logged it.

    The worst infinity if the run diverged, failed or ended with a non-finite value.
    """
    if run.status == UNFINISHED:
        return None
    values = run.columns[column]
    if run.status != "completed":
        return _worst(column)
    if np.isnan(values).all():
        return None
    return _worst(column) if math.isnan(values[-1]) else float(values[-1])


def best(run: Run, column: str) -> float | None:
    """The best finite value logged, also by a run that diverged later; None if the run is unfinished or has none."""
    values = run.columns[column][~np.isnan(run.columns[column])]
    if run.status == UNFINISHED:
        return None
    if not len(values):
        return None if run.status == "completed" else _worst(column)
    return float(values.max() if column.endswith("acc") else values.min())


def test_metric(run: Run, key: str) -> float | None:
    """``test_loss`` or ``test_acc``; the worst infinity if the run diverged or failed; None if not evaluated."""
    if run.status == "completed":
        value = number_or_nan(run.summary.get(key))
        return None if math.isnan(value) else value
    return None if run.status == UNFINISHED else _worst(key)


def training_seconds(run: Run) -> float:
    """Training seconds, whatever the run's status; 0 if not recorded."""
    clock = run.summary.get("seconds")
    total = number_or_nan(clock.get("train")) if isinstance(clock, dict) else math.nan
    logged = float(run.columns["seconds"][-1]) if len(run.columns["seconds"]) else 0.0
    return logged if math.isnan(total) or total < logged else total


def seconds_per_step(run: Run) -> float | None:
    """Median training seconds per step over the intervals between logged rows, so that a slow start has no effect.

    None for an unfinished run or one with fewer than two rows.
    """
    if run.status == UNFINISHED or len(run.columns["step"]) < 2:
        return None
    return median(list(np.diff(run.columns["seconds"]) / np.diff(run.columns["step"])))


def to_target(run: Run, target: Target) -> tuple[float, float] | None:
    """Steps and seconds to the first logged row that meets a target; infinite if none does; None if unfinished."""
    if run.status == UNFINISHED:
        return None
    values = run.columns[target.column]
    met = values >= target.value if target.larger_is_better else values <= target.value
    if run.status != "completed" or not met.any():
        return math.inf, math.inf
    return float(run.columns["step"][met][0]), float(run.columns["seconds"][met][0])


def at_equal_seconds(first: Run, second: Run, column: str) -> tuple[float, float] | None:
    """A metric of two runs after equal training seconds.

    The runs are compared at the last moment at which the longer run logged a row while the shorter one was still
    running; each is represented by its last row up to that moment. Infinite for a diverged or failed run; None if a run
    is unfinished, or if there is no such moment.
    """
    ends = final(first, column), final(second, column)
    if ends[0] is None or ends[1] is None:
        return None
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1])):
        return ends[0], ends[1]
    longer, shorter = sorted((first, second), key=lambda run: run.columns["seconds"][-1], reverse=True)
    moments = longer.columns["seconds"]
    moment = moments[moments <= shorter.columns["seconds"][-1]].max(initial=0.0)
    mine, other = (_last_by(run, column, moment) for run in (first, second))
    return (mine, other) if moment > 0 and not math.isnan(mine + other) else None


def _last_by(run: Run, column: str, moment: float) -> float:
    values = run.columns[column][run.columns["seconds"] <= moment]
    values = values[~np.isnan(values)]
    return float(values[-1]) if len(values) else math.nan


def over_runs(runs: Sequence[Run], of: Callable[[Run], float | None]) -> Estimate | None:
    """The median of a metric over runs; None if there are completed runs and none has the metric."""
    values = [(run.status, of(run)) for run in runs]
    done = [value for status, value in values if status == "completed"]
    if done and all(value is None for value in done):
        return None
    return estimate([value for _, value in values if value is not None])


def median_over(runs: Sequence[Run], of: Callable[[Run], float | None]) -> float | None:
    """The median of `over_runs`, or None."""
    found = over_runs(runs, of)
    return found.median if found else None


FINAL_LOSS = Quantity("final_train_loss", "final train loss", False, lambda run: final(run, "train_loss"))
BEST_LOSS = Quantity("best_train_loss", "best train loss", False, lambda run: best(run, "train_loss"))
FINAL_ACC = Quantity("final_train_acc", "final train acc", True, lambda run: final(run, "train_acc"))
FINAL_VAL = Quantity("final_val_acc", "final val acc", True, lambda run: final(run, "val_acc"))
BEST_VAL = Quantity("best_val_acc", "best val acc", True, lambda run: best(run, "val_acc"))
TEST_ACC = Quantity("test_acc", "test acc", True, lambda run: test_metric(run, "test_acc"))
OF_ACCURACY = (FINAL_VAL, BEST_VAL, TEST_ACC)
OF_LOSS = (
    Quantity("final_val_loss", "final val loss", False, lambda run: final(run, "val_loss")),
    Quantity("best_val_loss", "best val loss", False, lambda run: best(run, "val_loss")),
    Quantity("test_loss", "test loss", False, lambda run: test_metric(run, "test_loss")),
)
