"""Costs of many methods on several problems to reach SGD's results; report/rules.html states the rules.

The costs of targets at three levels are also scored with tuning included.

**Levels** of a problem: the final result of SGD, tuned like all other methods; the median of all methods' final
results; and the best decile of these results. A method's result is its median over seeds.

**Total cost** of a run: the seconds of all tuning trials of its method on that problem, at the seconds per step of the
final runs, plus the seconds to the target. All methods have the same number of trials.

A target is met **at the first logged row** if the fastest method meets it at the first row after the start, on at
least half of its seeds. The cost then depends only on how often metrics were logged.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sibp.analysis.clock import kept_problems
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.outcomes import FINAL_LOSS, Quantity, Target, to_target, training_seconds
from sibp.analysis.performance_profiles import ranks, ratios, resampled_scores, score, shares_of_firsts
from sibp.analysis.statistics import Estimate, bounds, estimate, median
from sibp.runs.collect import Broken, collect
from sibp.runs.identity import TRIAL, essential
from sibp.runs.packed import PACKED
from sibp.runs.reading import MAX_SUMMARY, first_line, read_text
from sibp.runs.values import UsageError, canonical, plain, shown

ARENA = "arena"  # folder in results/
REFERENCE = "sgd"
GOALS = ("validation", "training")  # data on which a target is measured
UNITS = ("steps", "seconds")
COSTS = (*UNITS, "seconds with tuning")
LEVELS = ("SGD's end", "the median", "the best decile")
DECILE = 0.1


@dataclass(frozen=True, eq=False)
class Contest:
    """One problem of the arena."""

    problem: Problem  # its methods are named as in their sweep
    quantities: Mapping[str, Quantity]  # goal -> final validation metric or final training loss
    targets: Mapping[str, Target]  # goal -> SGD's result
    seeds: list[int]  # the seeds of SGD's runs, on which all methods are compared

    @property
    def entered(self) -> list[Method]:
        """All methods with results."""
        return [method for method in self.problem.methods if method.runs]

    def entry(self, name: str) -> Method | None:
        """A method with results, or None."""
        return {method.name: method for method in self.entered}.get(name)


@dataclass(frozen=True, eq=False)
class Standing:
    """A method's results over all instances."""

    name: str  # of the method
    entered: int  # number of problems with results
    places: dict[str, Estimate | None]  # goal -> median over instances of the rank by final result
    ratios: dict[tuple[str, str], list[float]]  # (goal, unit) -> cost over the least cost, one entry per instance
    scores: dict[tuple[str, str], Estimate]  # (goal, unit) -> score with its interval
    firsts: dict[tuple[str, str], float]  # (goal, unit) -> share of resamples in which the score is the highest


def kept(results: Path, place: str = ARENA) -> list[Contest]:
    """The kept problems below a folder of results/, such as ``arena`` or ``arena/PROBLEM``; empty if none is kept."""
    if not any((results / place).rglob(PACKED)):
        return []
    problems = kept_problems(collect([results / place]).runs, results, ARENA)
    return contests(problems, own_names([results / ARENA], []))


def own_names(folders: Sequence[Path], broken: list[Broken]) -> dict[str, str]:
    """``{identity: name}`` from the sweeps' ``tuning.json``; unreadable records are added to ``broken``."""
    found: dict[str, str] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("tuning.json")):
        try:
            for method in plain(json.loads(read_text(path, MAX_SUMMARY) or ""))["methods"]:
                found.setdefault(_identity(method["optimizer"]), shown(method["name"]))
        except Exception as error:  # a broken record must not prevent the report of all others
            broken.append(Broken(path, f"it is not a record of a sweep ({type(error).__name__}: {first_line(error)})"))
    return found


def _identity(optimizer: Mapping[str, Any]) -> str:
    """The string-valued settings of an optimizer, which identify the method."""
    return canonical({key: value for key, value in essential(optimizer).items() if isinstance(value, str)})


def contests(problems: Sequence[Problem], names: Mapping[str, str]) -> list[Contest]:
    """Problems with their targets; a method without a name in ``names`` keeps its own.

    Raises:
        UsageError: a problem has no completed run of SGD, or none with a training loss and the validation metric.
    """
    return [_contest(problem, names) for problem in problems]


def _contest(problem: Problem, names: Mapping[str, str]) -> Contest:
    given = [names.get(_identity(method.settings[0].optimizer), method.name) for method in problem.methods]
    methods = [  # two sweeps may give one name to different methods, which must not be merged
        replace(method, name=name if given.count(name) == 1 else method.name)
        for method, name in zip(problem.methods, given, strict=True)
    ]
    sgd = next((method for method in methods if method.name == REFERENCE), None)
    if sgd is None or not any(run.status == "completed" for run in sgd.runs):
        raise UsageError(f"{problem.title}: no run of {REFERENCE} completed, but its result is the arena's target.")
    if not sgd.validated:
        raise UsageError(f"{problem.title}: {REFERENCE} has no validation data, but its result is the arena's target.")
    quantities: dict[str, Quantity] = dict(zip(GOALS, (problem.quantities[0], FINAL_LOSS), strict=True))
    targets = {goal: _target(problem, sgd, quantity) for goal, quantity in quantities.items()}
    return Contest(replace(problem, methods=methods), quantities, targets, [run.seed for run in sgd.runs])


def _target(problem: Problem, sgd: Method, quantity: Quantity) -> Target:
    end = sgd.over_seeds(quantity)
    if end is None:
        raise UsageError(f"{problem.title}: {REFERENCE} has no {quantity.title}, but it is the arena's target.")
    return Target(quantity.key.removeprefix("final_"), end.median)


def pace(method: Method) -> float:
    """Median over runs of training seconds per step, including occasional work; 0 if no run took a step."""
    last = [(run, run.columns["step"][-1]) for run in method.runs if len(run.columns["step"])]
    return median([training_seconds(run) / steps for run, steps in last if steps > 0] or [0.0])


def tuning_seconds(method: Method) -> float:
    """Seconds of all tuning trials of a method, at the seconds per step of its final runs."""
    steps = [run.columns["step"][-1] for run in method.all_runs if run.role == TRIAL and len(run.columns["step"])]
    return pace(method) * float(sum(steps))


def costs(method: Method, target: Target) -> dict[int, dict[str, float]]:
    """``{seed: {cost: value}}`` for each of `COSTS` to reach a target, over finished runs."""
    each, tuning, found = pace(method), tuning_seconds(method), {}
    for run in method.runs:
        if reached := to_target(run, target):
            steps = reached[0]
            seconds = math.inf if math.isinf(steps) else steps * each
            found[run.seed] = dict(zip(COSTS, (steps, seconds, seconds + tuning), strict=True))
    return found


def instance_costs(targets: Mapping[Contest, Target]) -> dict[str, dict[str, list[float]]]:
    """``{cost: {method: values}}`` for each of `COSTS`, one value per instance, to reach the target of each problem."""
    needed = {(each, method): costs(method, target) for each, target in targets.items() for method in each.entered}

    def values(cost: str, contest: Contest, method: Method) -> dict[int, float]:
        return {seed: found[cost] for seed, found in needed[contest, method].items()}

    return {cost: _by_instance(list(targets), partial(values, cost)) for cost in COSTS}


def _by_instance(
    contests: Sequence[Contest], values: Callable[[Contest, Method], Mapping[int, float]]
) -> dict[str, list[float]]:
    """``{method: values}``, one for every seed of every problem; infinite without a finished run."""
    found: dict[str, list[float]] = {name: [] for name in entrants(contests)}
    for contest in contests:
        for name, own in found.items():
            method = contest.entry(name)
            known = values(contest, method) if method else {}
            own += [known.get(seed, math.inf) for seed in contest.seeds]
    return found


def entrants(contests: Sequence[Contest]) -> dict[str, int]:
    """``{method: number of problems}`` on which it has results, sorted by name."""
    entered = Counter(method.name for contest in contests for method in contest.entered)
    return dict(sorted(entered.items()))


def standings(contests: Sequence[Contest]) -> list[Standing]:
    """All methods over all instances, sorted by the score in steps to the validation target, then by name."""
    sizes = [len(contest.seeds) for contest in contests]
    found = {name: Standing(name, entered, {}, {}, {}, {}) for name, entered in entrants(contests).items()}
    for goal in GOALS:
        for name, places in ranks(_by_instance(contests, partial(_results, goal))).items():
            found[name].places[goal] = estimate(places)
        needed = instance_costs({contest: contest.targets[goal] for contest in contests})
        for unit in UNITS:
            times = ratios(needed[unit])
            drawn = resampled_scores(times, sizes)
            for name, row, first in zip(found, drawn, shares_of_firsts(drawn), strict=True):
                each, key = found[name], (goal, unit)
                each.ratios[key], each.firsts[key] = times[name], first
                each.scores[key] = Estimate(score(times[name]), *bounds(row), sum(sizes))
    return sorted(found.values(), key=lambda each: -each.scores[GOALS[0], UNITS[0]].median)


def _results(goal: str, contest: Contest, method: Method) -> dict[int, float]:
    """``{seed: final result}``, smaller is better."""
    quantity = contest.quantities[goal]
    return {seed: quantity.sign * value for seed, value in method.by_seed(quantity).items()}


@dataclass(frozen=True)
class Level:
    """A target of one problem."""

    target: Target
    reached: int  # number of methods whose median cost over seeds is finite
    entered: int  # number of methods
    at_first_row: bool  # as defined above


def targets(contest: Contest, goal: str) -> list[Target]:
    """The targets of a problem for one of `GOALS`, one per level."""
    quantity, sgd = contest.quantities[goal], contest.targets[goal]
    ends = sorted(quantity.sign * found.median for method in contest.entered if (found := method.over_seeds(quantity)))
    best = ends[max(0, math.ceil(DECILE * len(ends)) - 1)]
    return [sgd, *(replace(sgd, value=quantity.sign * end) for end in (median(ends), best))]


def levels(contest: Contest, goal: str) -> list[Level]:
    """The difficulty of a problem's `targets`."""
    found = []
    for target in targets(contest, goal):
        needed = {method: costs(method, target) for method in contest.entered}
        medians = {method: median([cost["steps"] for cost in each.values()]) for method, each in needed.items() if each}
        fastest = min(medians, key=lambda method: medians[method])
        firsts = {run.seed: next((s for s in run.columns["step"] if s > 0), math.inf) for run in fastest.runs}
        seen = [cost["steps"] <= firsts[seed] for seed, cost in needed[fastest].items()]
        reached = sum(map(math.isfinite, medians.values()))
        found.append(Level(target, reached, len(needed), sum(seen) * 2 >= len(seen)))
    return found


def scores(contests: Sequence[Contest], goal: str) -> dict[str, dict[tuple[str, str], float]]:
    """``{method: {(level, cost): score}}``, as `sibp.analysis.performance_profiles.score`."""
    found: defaultdict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    aims = {contest: targets(contest, goal) for contest in contests}
    for i, level in enumerate(LEVELS):
        for cost, needed in instance_costs({contest: aims[contest][i] for contest in contests}).items():
            for name, own in ratios(needed).items():
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
