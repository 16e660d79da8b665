"""Running a sweep: trials in batches, then the chosen settings over fresh seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sibp.runs.folder import AGAIN, RunFolder
from sibp.runs.outcome import Outcome
from sibp.runs.packed import rows_of
from sibp.runs.reading import read_run
from sibp.runs.values import BrokenError, number_or_nan
from sibp.tuning.grid import WORST, Score, Trial, best, edges, next_trials
from sibp.tuning.sweep import Method, Sweep

Metrics = dict[str, float]
LOGGED = ("val_acc", "val_loss", "train_loss")
ENDED = ("completed", "skipped", "diverged", "failed")


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its config and its label."""

    config: dict[str, Any]
    label: str


@dataclass(frozen=True)
class RunRecord:
    """How one run ended: completed, diverged, failed, busy, interrupted, or not ended; with its metrics, if any."""

    seed: int
    folder: RunFolder
    status: str
    reason: str | None
    metrics: Metrics
    seconds: float


@dataclass(frozen=True)
class TrialRecord:
    """A setting that was tried, its runs over the tuning seeds, and its score, None while a run has not ended."""

    trial: Trial
    setting: dict[str, float]
    runs: list[RunRecord]
    score: Score | None


@dataclass
class MethodRecord:
    """The trials and final runs of a method; ``chosen`` is None until the trials have ended, or if none completed."""

    method: Method
    trials: list[TrialRecord] = field(default_factory=list)
    chosen: TrialRecord | None = None
    edges: list[str] = field(default_factory=list)
    finals: list[RunRecord] = field(default_factory=list)

    @property
    def waiting(self) -> bool:
        """Whether a trial has not ended, so that the search cannot continue."""
        return any(trial.score is None for trial in self.trials)


Train = Callable[[Sequence[Job], Callable[[Outcome], None]], None]


class Study:
    """Runs a sweep from its beginning; finished runs are read, not trained again, so a resumed search is the same.

    Args:
        sweep: the sweep.
        train: runs jobs, and calls its second argument with the outcome of each, in any order.
        save: called whenever a record changes.

    Attributes:
        methods: the record of each method.
        interrupted: whether it was stopped by Ctrl-C.
    """

    def __init__(self, sweep: Sweep, train: Train, save: Callable[["Study"], None]):
        self.sweep, self._train, self._save = sweep, train, save
        self.methods = [MethodRecord(method) for method in sweep.methods]
        self.interrupted = False

    def run(self) -> None:
        """Tune every method, then run the chosen settings with the final seeds."""
        while not self.interrupted and self._round():
            for record in self.methods:
                if not (self.interrupted or record.waiting or self._next(record)):
                    self._choose(record)
            self._save(self)
        if not self.interrupted:
            self._finals()
            self._save(self)

    def _round(self) -> bool:
        """One batch of trials for every method that has trials left."""
        batches = [(record, self._next(record)) for record in self.methods if not record.waiting]
        seeds = self.sweep.tuning_seeds
        jobs = [self._job(r.method, trial, seed) for r, batch in batches for trial in batch for seed in seeds]
        if not jobs:
            return False
        ended = self._ended(jobs)
        for record, batch in batches:
            for trial in batch:
                runs = [_read(self._job(record.method, trial, seed), ended, self._row) for seed in seeds]
                score = score_of(runs, self.sweep.criterion)
                record.trials.append(TrialRecord(trial, record.method.setting(trial.point), runs, score))
        return True

    def _next(self, record: MethodRecord) -> list[Trial]:
        return next_trials(_scores(record), record.method.axes, self.sweep.trials)

    def _choose(self, record: MethodRecord) -> None:
        done, axes = _scores(record), record.method.axes
        place = best(done, axes)
        if done[place][0] == math.inf:
            return
        record.chosen = next(each for each in record.trials if each.trial.point == place)
        record.edges = [
            f"{axes[i].name} = {axes[i].at(place[i]):g} is the {'largest' if sign > 0 else 'smallest'} tried"
            for i, sign in edges(done, axes)
        ]

    def _finals(self) -> None:
        """Ordered by seed, so that a slower machine slows all methods equally."""
        chosen = [(record, record.chosen.trial) for record in self.methods if record.chosen]
        seeds = self.sweep.final_seeds
        jobs = [self._job(record.method, trial, seed, True) for seed in seeds for record, trial in chosen]
        ended = self._ended(jobs)
        for record, trial in chosen:
            record.finals = [_read(self._job(record.method, trial, seed, True), ended, _last) for seed in seeds]

    def _ended(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        outcomes: list[Outcome] = []
        try:
            self._train(jobs, outcomes.append)
        except KeyboardInterrupt:
            self.interrupted = True
        return {outcome.folder.path.name: outcome for outcome in outcomes}

    def _row(self, rows: list[Metrics]) -> Metrics:
        """The logged row by which a trial is judged."""
        return _last(rows) if self.sweep.at == "last" else min(rows, key=lambda row: _score(row, self.sweep.criterion))

    def _job(self, method: Method, trial: Trial, seed: int, final: bool = False) -> Job:
        config = self.sweep.job(method, trial.point, seed, final)
        kind = "final" if final else "trial"
        return Job(config, f"{kind} {method.name} {shown(method.setting(trial.point))} s{seed}")


def shown(setting: dict[str, float]) -> str:
    """A setting as text.

    Args:
        setting: name -> value.

    Returns:
        Such as ``lr=0.1 momentum=0.9``.
    """
    return " ".join(f"{key}={value:g}" for key, value in setting.items())


def score_of(runs: Sequence[RunRecord], criterion: str) -> Score | None:
    """The score of a setting: the median over its seeds; a run that diverged or failed is worse than any other.

    Args:
        runs: its runs.
        criterion: one of `CRITERIA` of `sibp.tuning.sweep`: the deciding metric, and the tie-breaker.

    Returns:
        Two numbers, smaller is better; None if a run has not ended.
    """
    if any(run.status not in ENDED for run in runs):
        return None
    scores = [_score(run.metrics, criterion) if run.metrics else WORST for run in runs]
    first, second = (median(values) for values in zip(*scores, strict=True))
    return first, second


def _score(metrics: Metrics, criterion: str) -> Score:
    accuracy, loss = -metrics.get("val_acc", 0.0), metrics["val_loss"]
    if criterion == "train_loss":
        return metrics.get("train_loss", math.inf), loss
    return (accuracy, loss) if criterion == "val_acc" else (loss, accuracy)


def _last(rows: list[Metrics]) -> Metrics:
    return rows[-1]


def _scores(record: MethodRecord) -> dict[tuple[float, ...], Score]:
    return {each.trial.point: each.score for each in record.trials if each.score is not None}


def _read(job: Job, ended: dict[str, Outcome], pick: Callable[[list[Metrics]], Metrics]) -> RunRecord:
    folder = RunFolder(job.config)
    outcome = ended.get(folder.path.name)
    seed = job.config["seed"]
    if outcome is None:
        return RunRecord(seed, folder, "not ended", None, {}, 0.0)
    summary = folder.summary() or {}
    times = summary.get("seconds")
    seconds = number_or_nan(times.get("train")) if isinstance(times, dict) else 0.0
    seconds = 0.0 if math.isnan(seconds) else seconds
    if outcome.status not in ("completed", "skipped"):
        return RunRecord(seed, folder, outcome.status, outcome.message, {}, seconds)
    try:
        rows = [_numbers(row, *LOGGED) for row in rows_of(read_run(folder.path))]
        metrics = pick(rows) | _numbers(summary, *(key for key in ("test_acc", "test_loss") if key in summary))
    except (BrokenError, IndexError) as error:
        return RunRecord(
            seed, folder, "failed", f"its files cannot be read ({str(error) or 'no rows'}): {AGAIN}", {}, seconds
        )
    return RunRecord(seed, folder, "completed", None, metrics, seconds)


def _numbers(row: dict[str, Any], *keys: str) -> Metrics:
    """Some of a row's metrics; a non-finite loss becomes infinite, a missing accuracy is omitted."""
    known = {key: number_or_nan(row.get(key)) for key in keys}
    return {k: math.inf if math.isnan(v) else v for k, v in known.items() if k.endswith("loss") or not math.isnan(v)}
