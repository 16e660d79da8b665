"""Whether a criterion of `sibp.study.claims` holds, judged from the kept runs."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sibp.analysis.clock import Timed, kept_problems, timed
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import after_equal_seconds
from sibp.analysis.outcomes import FINAL_LOSS
from sibp.analysis.scoring import BETTER, TOO_FEW, Verdict, verdict
from sibp.analysis.statistics import Estimate, estimate
from sibp.analysis.step_sizes import losses
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED
from sibp.runs.values import UsageError, number_or_nan
from sibp.study.claims import OF_RUNS, OVER_SETTINGS, Better, Criterion, Every
from sibp.study.experiments import REPRODUCE


class OpenError(Exception):
    """A criterion cannot be judged from the kept runs; the message says why."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a criterion."""

    criterion: Criterion
    holds: bool | None  # None if it is open
    why: str  # a verdict's word, the number of rows that hold, or the reason why it is open
    mine: Estimate | float | None = None  # the method's value; for `Every`, the value of the worst row
    other: Estimate | None = None  # the other method's value
    verdict: Verdict | None = None  # paired by seed
    after_seconds: Verdict | None = None  # the same after equal training seconds, where applicable
    clock: Timed | None = None  # the verdict by the clock, for a training loss

    @property
    def holds_per_second(self) -> bool | None:
        """The same as ``holds``, but after equal training seconds."""
        return _holds(self.after_seconds) if self.after_seconds else None


class Evidence:
    """The kept runs and records below ``results``, read lazily and cached."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.problem = cache(self._problem)

    def _problem(self, place: str) -> Problem:
        """The kept runs of EXPERIMENT or EXPERIMENT/FOLDER, compared.

        Raises:
            OpenError: there are none.
            UsageError: they belong to several problems.
        """
        folder, experiment = self.results / place, place.partition("/")[0]
        if not any(folder.rglob(PACKED)):
            raise OpenError(f"not run yet (`{REPRODUCE} {experiment}`)")
        problems = kept_problems(collect([folder]).runs, self.results, experiment)
        if len(problems) != 1:
            raise UsageError(f"results/{place} has {len(problems)} problems: name one of its folders.")
        return problems[0]

    def method(self, place: str, name: str) -> Method:
        """A method of EXPERIMENT or EXPERIMENT/FOLDER.

        Raises:
            OpenError: it has no kept runs there.
        """
        methods = self.problem(place).by_name
        if name not in methods:
            raise OpenError(f"{name} is not among the methods of {place}: {', '.join(methods)}")
        return methods[name]

    def rows(self, place: str, name: str) -> list[dict[str, Any]]:
        """The list ``name`` in the record EXPERIMENT/FILE.json, or several lists joined by ``+``.

        Raises:
            OpenError: there is no such file.
            UsageError: it has no such list of rows.
        """
        path = self.results / place
        if not path.exists():
            raise OpenError(f"not run yet (`{REPRODUCE} {place.partition('/')[0]}`)")
        record, found = json.loads(path.read_text()), []
        for each in name.split("+"):
            rows = record.get(each) if isinstance(record, dict) else None
            if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
                raise UsageError(f"results/{place} has no list of rows {each!r}.")
            found += rows
        return found


def find(criterion: Criterion, evidence: Evidence) -> Finding:
    """Whether a criterion holds.

    Raises:
        UsageError: a kept record lacks the list or key of the criterion, or a folder has several problems.
    """
    try:
        return _better(criterion, evidence) if isinstance(criterion, Better) else _every(criterion, evidence)
    except OpenError as reason:
        return Finding(criterion, None, str(reason))


def _better(criterion: Better, evidence: Evidence) -> Finding:
    mine, other = (_values(criterion, name, evidence) for name in (criterion.method, criterion.other))
    larger_is_better = criterion.quantity in OVER_SETTINGS or OF_RUNS[criterion.quantity].larger_is_better
    found, after, clock = verdict(mine, other, larger_is_better), None, None
    if criterion.timed:
        first, second = (evidence.method(criterion.place, name) for name in (criterion.method, criterion.other))
        quantity = OF_RUNS[criterion.quantity]
        after = after_equal_seconds(first, second, quantity.key.removeprefix("final_"))
        if quantity is FINAL_LOSS:
            clock = timed(first, second, evidence.problem(criterion.place).clock)
    has, other_has = (estimate(list(values.values())) for values in (mine, other))
    return Finding(criterion, _holds(found), found.word, has, other_has, found, after, clock)


def _holds(found: Verdict) -> bool | None:
    return None if found.word == TOO_FEW else found.word == BETTER


def _values(criterion: Better, name: str, evidence: Evidence) -> dict[int, float]:
    """``{seed: value}`` of a method, divided by the same seed's value at ``relative_to`` if given."""
    methods = [evidence.method(place, name) for place in criterion.places]
    if criterion.quantity in OVER_SETTINGS:
        of = OVER_SETTINGS[criterion.quantity]
        values, *base = [{s: of(by_lr) for s, by_lr in losses(each, criterion.at).items()} for each in methods]
    else:
        values, *base = [each.by_seed(OF_RUNS[criterion.quantity]) for each in methods]
    if not base:
        return values
    pairs = {seed: (own, base[0][seed]) for seed, own in values.items() if base[0].get(seed)}
    return {seed: own if math.isinf(own) else own / other for seed, (own, other) in pairs.items()}


def _every(criterion: Every, evidence: Evidence) -> Finding:
    name, _, key = criterion.key.partition(".")
    rows = evidence.rows(criterion.place, name)
    if not all(key in row for row in rows):
        raise UsageError(f"results/{criterion.place}: a row of {name!r} has no {key!r}.")
    values = [number_or_nan(row[key]) for row in rows]
    worst = math.nan if any(map(math.isnan, values)) else max(values) if criterion.below else min(values)
    kept = [value < criterion.bound if criterion.below else value > criterion.bound for value in values]
    return Finding(criterion, all(kept), f"{sum(kept)} of {len(kept)}", worst)
