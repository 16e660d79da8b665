"""AutoSIBP with its default settings against every tuned method: final metrics, time, and time including tuning.

The tuned methods are the kept runs of the arena (or of the experiment in `ELSEWHERE`). Seconds of all methods are those
measured in turn, `sibp.analysis.clock.KEPT`. Rankings by the clock use the tuned methods' seeds; final metrics use all
seeds of AutoSIBP. `beside_defaults` has it against other methods with their own defaults.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sibp.analysis.arena import ARENA, GOALS, REFERENCE, Contest, contests, costs_by_seed, own_names, tuning_seconds
from sibp.analysis.clock import cost_ratios, kept_problems
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import by_seed
from sibp.analysis.levels import targets
from sibp.analysis.outcomes import Target
from sibp.analysis.scoring import Verdict, verdict
from sibp.analysis.statistics import Estimate, estimate, median
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED

AUTO, FOLDER, OF_SGD = "sibp_auto", "auto_untuned", "_sgd"
PEERS = "untuned_peers"  # others with their own defaults
FAMILY = ("proxbp", "sibp exact", "sibp cg:3", "sibp cg:5")  # without an outer optimizer
ELSEWHERE = {"label_noise": "label_noise/noise40"}  # problem -> its tuned methods, if not in the arena


@dataclass(frozen=True, eq=False)
class Untuned:
    """A problem with AutoSIBP entered."""

    folder: str  # in results/auto_untuned
    contest: Contest  # on the seeds of the tuned methods
    own: Method  # all runs of AutoSIBP
    sgd: Method  # all runs of tuned SGD
    ratio: float  # AutoSIBP's seconds per step over SGD's


@dataclass(frozen=True)
class Beside:
    """AutoSIBP's final metric against the best of some tuned methods and against tuned SGD."""

    own: Estimate
    best: str  # the tuned method with the best median
    least: Estimate  # its metric
    within: bool  # whether AutoSIBP's median is within that interval, or better
    sgd: Estimate
    against_sgd: Verdict  # paired by seed


def untuned(results: Path) -> list[Untuned]:
    """Every kept problem of results/auto_untuned, in the order of the folders."""
    folders = sorted(path.parent for path in (results / FOLDER).glob("*/" + PACKED))
    return [_untuned(results, folder) for folder in folders if not folder.name.endswith(OF_SGD)]


def _untuned(results: Path, folder: Path) -> Untuned:
    kept = results / ELSEWHERE.get(folder.name, f"{ARENA}/{folder.name}")
    own, further = collect([folder]).runs, folder.with_name(folder.name + OF_SGD)
    more = collect([further]).runs if further.is_dir() else []
    tuned = collect([kept]).runs
    seeds = {run.seed for run in tuned}
    problems = kept_problems([*tuned, *(run for run in own if run.seed in seeds)], results, ARENA)
    (contest,) = contests(problems, own_names([results / ARENA, kept], []))
    methods = {method.name: method for method in contest.problem.methods}
    sgd = methods[REFERENCE]
    ratio = median(cost_ratios(methods[AUTO], sgd, contest.problem.clock))
    all_sgd = replace(sgd, runs=sorted([*sgd.runs, *more], key=lambda run: run.seed))
    return Untuned(folder.name, contest, Method(AUTO, [], None, None, list(own)), all_sgd, ratio)


def beside_defaults(results: Path) -> dict[str, Problem]:
    """Every kept problem of results/untuned_peers, by its folder, with AutoSIBP entered on the same seeds."""
    found = {}
    for folder in sorted(path.parent for path in (results / PEERS).glob("*/" + PACKED)):
        own, rivals = results / FOLDER / folder.name, collect([folder]).runs
        seeds = {run.seed for run in rivals}
        entered = [run for run in collect([own]).runs if run.seed in seeds] if own.is_dir() else []
        (found[folder.name],) = kept_problems([*rivals, *entered], results, PEERS)
    return found


def at_the_end(problem: Untuned, goal: str, among: Collection[str] | None = None) -> Beside:
    """AutoSIBP's final metric for one of `GOALS`, against the tuned methods in ``among``, or all."""
    quantity = problem.contest.quantities[GOALS.index(goal)]
    sign = -1 if quantity.larger_is_better else 1
    rivals = {
        method.name: list(by_seed(method, quantity).values())
        for method in problem.contest.problem.methods
        if method.runs and method.name != AUTO and (among is None or method.name in among)
    }
    best = min(rivals, key=lambda name: sign * median(rivals[name]))
    own, sgd = by_seed(problem.own, quantity), by_seed(problem.sgd, quantity)
    mine, least, reference = (_known(list(values)) for values in (own.values(), rivals[best], sgd.values()))
    worst = least.low if quantity.larger_is_better else least.high
    within = sign * mine.median <= sign * (least.median if worst is None else worst)
    return Beside(mine, best, least, within, reference, verdict(own, sgd, quantity.larger_is_better))


def _known(values: list[float]) -> Estimate:
    found = estimate(values)
    assert found is not None, "a method without a value"
    return found


def total_costs(problem: Untuned, goal: str) -> list[tuple[Target, float, str, float]]:
    """Seconds to each target including tuning trials, of which AutoSIBP has none.

    Returns:
        For each level (target, AutoSIBP's seconds, the cheapest tuned method, its seconds): medians over seeds,
        infinite for a missed target; empty if no method was tuned on the problem.
    """
    found = []
    for target in targets(problem.contest, goal):
        of = {
            method.name: median(costs_by_seed(problem.contest, method, target)["seconds with tuning"])
            for method in problem.contest.problem.methods
            if method.runs and (method.name == AUTO or tuning_seconds(method))
        }
        mine = of.pop(AUTO)
        if not of:
            return []
        cheapest = min(of, key=lambda name: of[name])
        found.append((target, mine, cheapest, of[cheapest]))
    return found
