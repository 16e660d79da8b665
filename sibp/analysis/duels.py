"""Pairwise verdicts between the methods of a problem, and who won."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, count, islice

from sibp.analysis.comparison import Method, Problem
from sibp.analysis.outcomes import FINAL_LOSS, Quantity, at_equal_seconds
from sibp.analysis.scoring import BETTER, MIN_SEEDS, TOO_FEW, WORSE, Verdict, verdict
from sibp.analysis.statistics import Estimate

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
        word, difference = OPPOSITE.get(found.word, found.word), found.difference and -found.difference
        turned = Verdict(word, difference, found.losses, found.ties, found.wins, found.sign_p)
        return Duel(self.quantity, self.other, self.method, turned)


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
    pairs = list(combinations([method for method in problem.methods if method.runs], 2))
    by_quantity = [
        Duel(quantity.title, method, other, compared(method, other, quantity))
        for quantity in judged_quantities(problem)
        for other, method in pairs
    ]
    by_seconds = [Duel(SAME_SECONDS, method, other, after_equal_seconds(method, other)) for other, method in pairs]
    return (*by_quantity, *by_seconds)


def judged_quantities(problem: Problem) -> tuple[Quantity, ...]:
    """Final training loss, and final validation accuracy (or loss, if no run has an accuracy) if there is any."""
    validated = any(method.validated for method in problem.methods)
    return (FINAL_LOSS, problem.quantities[0]) if validated else (FINAL_LOSS,)


def compared(method: Method, other: Method, quantity: Quantity) -> Verdict:
    """The verdict on a method against another by a metric, paired by seed."""
    return verdict(method.by_seed(quantity), other.by_seed(quantity), quantity.larger_is_better)


def after_equal_seconds(method: Method, other: Method, column: str = "train_loss") -> Verdict:
    """The verdict on a method against another by a logged metric after equal training seconds, paired by seed."""
    pairs = {mine.seed: at_equal_seconds(mine, rival, column) for mine, rival in method.paired(other)}
    first, second = ({seed: pair[i] for seed, pair in pairs.items() if pair} for i in range(2))
    return verdict(first, second, larger_is_better=column.endswith("acc"))


def answer(problem: Problem, quantity: Quantity) -> Answer | None:
    """Who won by a metric; None if no method has a value."""
    medians = [(method, found) for method in problem.methods if (found := method.over_seeds(quantity))]
    if not medians:
        return None
    medians.sort(key=lambda each: each[1].median, reverse=quantity.larger_is_better)
    top = medians[0][1].median
    best = [method for method, of in medians if of.median == top and math.isfinite(top)]
    found = [
        Duel(quantity.title, method, other, compared(method, other, quantity))
        for method in best
        for other, _ in medians[len(best) :]
    ]
    return Answer(quantity.title, medians, best[0] if len(best) == 1 else None, found)


def missing_seeds(problem: Problem, found: Sequence[Duel]) -> Mapping[Method, list[int]]:
    """``{method: seeds}`` that must be run until all methods share `MIN_SEEDS` seeds; empty if none is missing."""
    few = [duel for duel in found if duel.verdict.word == TOO_FEW]
    short = [method for method in problem.methods if any(method in (duel.method, duel.other) for duel in few)]
    own = {method: {run.seed for run in method.runs if run.status != "unfinished"} for method in short}
    wanted, taken = set().union(*own.values()), {run.seed for run in problem.runs}
    fresh = (seed for seed in count() if seed not in taken)
    wanted |= set(islice(fresh, max(0, MIN_SEEDS - len(wanted))))
    return {method: sorted(wanted - seeds) for method, seeds in own.items() if wanted - seeds}
