"""Targets at three levels, and the cost of reaching them with tuning included.

**Levels** of a problem: the final result of SGD, tuned like all other methods; the median of all methods' final
results; and the best decile of these results. A method's result is its median over seeds.

**Total cost** of a run: the seconds of all tuning trials of its method on that problem, at the seconds per step of the
final runs, plus the seconds to the target. All methods have the same number of trials.

A target is met **at the first look** if the fastest method meets it at the first row logged after the start, on at
least half of its seeds. The cost then depends only on how often metrics were logged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sibp.analysis.arena import GOALS, Contest, costs, entrants, instance_costs
from sibp.analysis.duels import by_seed
from sibp.analysis.outcomes import Target
from sibp.analysis.performance_profiles import ratios, score
from sibp.analysis.statistics import median

LEVELS = ("SGD's end", "the median", "the best decile")
DECILE = 0.1


@dataclass(frozen=True)
class Level:
    """A target of one problem."""

    title: str  # of the problem
    target: Target
    reached: int  # number of methods whose median cost over seeds is finite
    entered: int  # number of methods
    at_first_look: bool  # as defined above


def targets(contest: Contest, goal: str) -> list[Target]:
    """The targets of a problem for one of `GOALS`, one per level."""
    at = GOALS.index(goal)
    quantity, sgd = contest.quantities[at], contest.targets[at]
    sign = -1 if quantity.larger_is_better else 1
    found = [by_seed(method, quantity) for method in contest.problem.methods if method.runs]
    ends = sorted(sign * median(list(values.values())) for values in found if values)
    best = ends[max(0, math.ceil(DECILE * len(ends)) - 1)]
    return [sgd, replace(sgd, value=sign * median(ends)), replace(sgd, value=sign * best)]


def levels(contests: Sequence[Contest], goal: str) -> list[list[Level]]:
    """The difficulty of the targets: for each level, one entry per problem."""
    aims = zip(*(targets(contest, goal) for contest in contests), strict=True)
    return [[_level(contest, target) for contest, target in zip(contests, aim, strict=True)] for aim in aims]


def _level(contest: Contest, target: Target) -> Level:
    entered = [method for method in contest.problem.methods if method.runs]
    needed = {method.name: {seed: cost["steps"] for seed, cost in costs(method, target).items()} for method in entered}
    medians = {name: median(list(steps.values())) for name, steps in needed.items() if steps}
    fastest = min(medians, key=lambda name: medians[name])
    runs = next(method for method in entered if method.name == fastest).runs
    firsts = {run.seed: next((s for s in run.columns["step"] if s > 0), math.inf) for run in runs}
    seen = [steps <= firsts[seed] for seed, steps in needed[fastest].items()]
    reached = sum(math.isfinite(value) for value in medians.values())
    return Level(contest.problem.title, target, reached, len(entered), sum(seen) * 2 >= len(seen) > 0)


def scores(contests: Sequence[Contest], goal: str) -> dict[str, dict[tuple[str, str], float]]:
    """``{method: {(level, cost): score}}``, as `sibp.analysis.performance_profiles.score`."""
    found: dict[str, dict[tuple[str, str], float]] = {name: {} for name in entrants(contests)}
    aims = zip(*(targets(contest, goal) for contest in contests), strict=True)
    for level, aim in zip(LEVELS, aims, strict=True):
        for cost, by_method in instance_costs(contests, aim).items():
            for name, own in ratios(by_method).items():
                found[name][level, cost] = score(own)
    return found


def failures(contests: Sequence[Contest]) -> list[tuple[str, str, int, int]]:
    """(method, problem, number of final runs that did not complete, number of final runs), sorted by the third."""
    found = [
        (method.name, contest.problem.title, sum(run.status != "completed" for run in method.runs), len(method.runs))
        for contest in contests
        for method in contest.problem.methods
    ]
    return sorted((row for row in found if row[2]), key=lambda row: (-row[2], row[0], row[1]))
