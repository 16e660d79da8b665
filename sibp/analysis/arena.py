"""Costs of many methods on several problems to reach SGD's results; report/rules.html states the rules."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sibp.analysis.clock import kept_problems
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import by_seed
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


@dataclass(frozen=True, eq=False)
class Contest:
    """One problem of the arena."""

    problem: Problem  # its methods are named as in their sweep
    quantities: tuple[Quantity, Quantity]  # final validation metric and final training loss
    targets: tuple[Target, Target]  # one for each quantity
    seeds: list[int]  # the seeds of SGD's runs, on which all methods are compared

    def entry(self, name: str) -> Method | None:
        """A method with results, or None."""
        found = self.problem.by_name.get(name)
        return found if found and found.runs else None


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
                found.setdefault(identity(method["optimizer"]), shown(method["name"]))
        except Exception as error:  # a broken record must not prevent the report of all others
            broken.append(Broken(path, f"it is not a record of a sweep ({type(error).__name__}: {first_line(error)})"))
    return found


def identity(optimizer: Mapping[str, Any]) -> str:
    """The string-valued settings of an optimizer, which identify the method."""
    return canonical({key: value for key, value in essential(optimizer).items() if isinstance(value, str)})


def contests(problems: Sequence[Problem], names: Mapping[str, str]) -> list[Contest]:
    """Problems with their targets; a method without a name in ``names`` keeps its own.

    Raises:
        UsageError: a problem has no completed run of SGD, or none with validation data.
    """
    return [_contest(problem, names) for problem in problems]


def _contest(problem: Problem, names: Mapping[str, str]) -> Contest:
    methods = [
        replace(method, name=names.get(identity(method.settings[0].optimizer), method.name))
        for method in problem.methods
    ]
    sgd = next((method for method in methods if method.name == REFERENCE), None)
    if sgd is None or not any(run.status == "completed" for run in sgd.runs):
        raise UsageError(f"{problem.title}: no run of {REFERENCE} completed, but its result is the arena's target.")
    if not sgd.validated:
        raise UsageError(f"{problem.title}: {REFERENCE} has no validation data, but its result is the arena's target.")
    quantities = (problem.quantities[0], FINAL_LOSS)
    first, second = (
        Target(quantity.key.removeprefix("final_"), median(list(by_seed(sgd, quantity).values())))
        for quantity in quantities
    )
    return Contest(replace(problem, methods=methods), quantities, (first, second), [run.seed for run in sgd.runs])


def pace(method: Method) -> float:
    """Median over runs of training seconds per step, including occasional work; 0 if no run took a step."""
    last = [(run, run.columns["step"][-1]) for run in method.runs if len(run.columns["step"])]
    return median([training_seconds(run) / steps for run, steps in last if steps > 0] or [0.0])


def costs(method: Method, target: Target) -> dict[int, dict[str, float]]:
    """``{seed: {unit: cost}}`` to reach a target, over finished runs."""
    each, found = pace(method), {}
    for run in method.runs:
        reached = to_target(run, target)
        if reached is not None:
            missed = math.isinf(reached[0])
            found[run.seed] = {"steps": reached[0], "seconds": math.inf if missed else reached[0] * each}
    return found


def tuning_seconds(method: Method) -> float:
    """Seconds of all tuning trials of a method, at the seconds per step of its final runs."""
    steps = [run.columns["step"][-1] for run in method.all_runs if run.role == TRIAL and len(run.columns["step"])]
    return pace(method) * float(sum(steps))


def costs_by_seed(contest: Contest, method: Method | None, target: Target) -> dict[str, list[float]]:
    """``{cost: values}`` for each of `COSTS`, one value per seed of the problem; infinite without a finished run."""
    needed = costs(method, target) if method else {}
    found = {unit: [needed[seed][unit] if seed in needed else math.inf for seed in contest.seeds] for unit in UNITS}
    tuning = tuning_seconds(method) if method else 0.0
    return found | {"seconds with tuning": [seconds + tuning for seconds in found["seconds"]]}


def instance_costs(contests: Sequence[Contest], targets: Sequence[Target]) -> dict[str, dict[str, list[float]]]:
    """``{cost: {method: values}}``, one value per instance, to reach the target of each problem."""
    names = entrants(contests)
    found: dict[str, dict[str, list[float]]] = {cost: {name: [] for name in names} for cost in COSTS}
    for contest, target in zip(contests, targets, strict=True):
        for name in names:
            for cost, values in costs_by_seed(contest, contest.entry(name), target).items():
                found[cost][name] += values
    return found


def entrants(contests: Sequence[Contest]) -> dict[str, int]:
    """``{method: number of problems}`` on which it has results, sorted by name."""
    entered = Counter(method.name for contest in contests for method in contest.problem.methods if method.runs)
    return dict(sorted(entered.items()))


def standings(contests: Sequence[Contest]) -> list[Standing]:
    """All methods over all instances, sorted by the score in steps to the validation target, then by name."""
    sizes = [len(contest.seeds) for contest in contests]
    found = {name: Standing(name, entered, {}, {}, {}, {}) for name, entered in entrants(contests).items()}
    for i, goal in enumerate(GOALS):
        results = {
            name: [value for contest in contests for value in _results(contest, name, contest.quantities[i])]
            for name in found
        }
        for name, places in ranks(results).items():
            found[name].places[goal] = estimate(places)
        needed = instance_costs(contests, [contest.targets[i] for contest in contests])
        for unit in UNITS:
            times = ratios(needed[unit])
            drawn = resampled_scores(times, sizes)
            for name, row, first in zip(found, drawn, shares_of_firsts(drawn), strict=True):
                each, key = found[name], (goal, unit)
                each.ratios[key], each.firsts[key] = times[name], first
                each.scores[key] = Estimate(score(times[name]), *bounds(row), sum(sizes))
    return sorted(found.values(), key=lambda each: -each.scores[GOALS[0], UNITS[0]].median)


def _results(contest: Contest, name: str, quantity: Quantity) -> list[float]:
    """A method's final results on every seed, smaller is better; infinite without a finished run."""
    method = contest.entry(name)
    own = by_seed(method, quantity) if method else {}
    sign = -1 if quantity.larger_is_better else 1
    return [sign * own[seed] if seed in own else math.inf for seed in contest.seeds]
