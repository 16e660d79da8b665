"""Pairwise verdicts between the methods of a problem, and who won."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product

from sibp.analysis.comparison import Method, Problem
from sibp.analysis.outcomes import FINAL_LOSS, Quantity, at_equal_seconds
from sibp.analysis.scoring import BETTER, MIN_SEEDS, TOO_FEW, WORSE, Verdict, verdict
from sibp.analysis.statistics import Estimate, estimate

SAME_SECONDS = "train loss after the same seconds"
OPPOSITE = {BETTER: WORSE, WORSE: BETTER}


@dataclass(frozen=True)
class Duel:
    """Two methods compared by one metric; the verdict is on the first."""

    quantity: str
    method: Method
    other: Method
    verdict: Verdict

    def turned(self) -> "Duel":
        """The same duel with the methods exchanged."""
        found = self.verdict
        split = {"wins": found.losses, "losses": found.wins, "word": OPPOSITE.get(found.word, found.word)}
        return Duel(
            self.quantity, self.other, self.method, replace(found, difference=_negative(found.difference), **split)
        )


def _negative(of: Estimate | None) -> Estimate | None:
    if of is None or of.low is None:
        return of and replace(of, median=-of.median)
    return Estimate(-of.median, -of.ends[1], -of.low, of.count)


@dataclass(frozen=True)
class Answer:
    """Who won by one metric."""

    quantity: str  # such as ``final train loss``
    medians: Sequence[tuple[Method, Estimate]]  # of every method with results, the best first
    leader: Method | None  # the method with the best median; None for a tie or an infinite median
    duels: Sequence[Duel]  # methods with the best median against all others, in the order of the medians

    @property
    def clear(self) -> bool:
        """Whether the leader is better than every other method."""
        return self.leader is not None and bool(self.duels) and all(d.verdict.word == BETTER for d in self.duels)


@lru_cache(maxsize=4)
def duels(problem: Problem) -> tuple[Duel, ...]:
    """All pairs of methods, by final training loss, final validation metric, and training loss after equal seconds."""
    methods = [method for method in problem.methods if method.runs]
    found = []
    for quantity in judged_quantities(problem):
        values = {method: by_seed(method, quantity) for method in methods}
        for other, method in combinations(methods, 2):
            word = verdict(values[method], values[other], quantity.larger_is_better)
            found.append(Duel(quantity.title, method, other, word))
    for other, method in combinations(methods, 2):
        mine, theirs = after_equal_seconds(method, other)
        found.append(Duel(SAME_SECONDS, method, other, verdict(mine, theirs, larger_is_better=False)))
    return tuple(found)


def judged_quantities(problem: Problem) -> tuple[Quantity, ...]:
    """Final training loss, and final validation accuracy (or loss, if no run has an accuracy) if there is any."""
    validated = any(method.validated for method in problem.methods)
    return (FINAL_LOSS, problem.quantities[0]) if validated else (FINAL_LOSS,)


def by_seed(method: Method, quantity: Quantity) -> dict[int, float]:
    """``{seed: value}`` over a method's shown runs that have a value."""
    values = {run.seed: quantity.of(run) for run in method.runs}
    return {seed: value for seed, value in values.items() if value is not None}


def after_equal_seconds(
    method: Method, other: Method, column: str = "train_loss"
) -> tuple[dict[int, float], dict[int, float]]:
    """For each method ``{seed: value}`` after equal training seconds, on shared seeds."""
    pairs = {mine.seed: at_equal_seconds(mine, rival, column) for mine, rival in method.paired(other)}
    known = {seed: pair for seed, pair in pairs.items() if pair is not None}
    return {seed: pair[0] for seed, pair in known.items()}, {seed: pair[1] for seed, pair in known.items()}


def answer(problem: Problem, quantity: Quantity) -> Answer | None:
    """Who won by a metric; None if no method has a value."""
    values = {method: by_seed(method, quantity) for method in problem.methods}
    medians = [(method, found) for method, own in values.items() if (found := estimate(list(own.values())))]
    if not medians:
        return None
    better = quantity.larger_is_better
    medians.sort(key=lambda each: -each[1].median if better else each[1].median)
    top = medians[0][1].median
    if math.isinf(top):
        return Answer(quantity.title, medians, None, [])
    best = [method for method, of in medians if of.median == top]
    rest = [method for method, _ in medians[len(best) :]]
    found = [Duel(quantity.title, a, b, verdict(values[a], values[b], better)) for a, b in product(best, rest)]
    return Answer(quantity.title, medians, best[0] if len(best) == 1 else None, found)


def missing_seeds(problem: Problem, found: Sequence[Duel]) -> Mapping[Method, list[int]]:
    """``{method: seeds}`` that must be run until all methods share `MIN_SEEDS` seeds; empty if none is missing."""
    short = {each for duel in found if duel.verdict.word == TOO_FEW for each in (duel.method, duel.other)}
    if not short:
        return {}
    own = {method: {run.seed for run in method.runs if run.status != "unfinished"} for method in problem.methods}
    taken = {run.seed for run in problem.runs}
    wanted = sorted(set.union(*(own[method] for method in short)))
    fresh = (seed for seed in range(len(taken) + MIN_SEEDS) if seed not in taken)
    while len(wanted) < MIN_SEEDS:
        wanted.append(next(fresh))
    missing = {
        method: [seed for seed in sorted(wanted) if seed not in own[method]]
        for method in problem.methods
        if method in short
    }
    return {method: seeds for method, seeds in missing.items() if seeds}
