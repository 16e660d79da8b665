"""AutoSIBP with its default settings against every tuned method: final metrics, time, and time including tuning.

The tuned methods are the kept runs of the arena (or of the experiment in `ELSEWHERE`). AutoSIBP's runs and further
seeds of SGD were made later, so **AutoSIBP's seconds are SGD's kept seconds per step times the ratio of the two
methods' processor times**, measured in turn by scripts/auto_clock.py. Rankings by time use the tuned methods' seeds;
final metrics use all seeds of AutoSIBP.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sibp.analysis.arena import ARENA, GOALS, REFERENCE, Contest, contests, costs_by_seed, own_names, pace
from sibp.analysis.comparison import Method, compare
from sibp.analysis.duels import by_seed
from sibp.analysis.levels import targets, tuning_seconds
from sibp.analysis.outcomes import Target, retimed, training_seconds
from sibp.analysis.scoring import Verdict, verdict
from sibp.analysis.statistics import Estimate, estimate, median
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED
from sibp.runs.reading import Run

AUTO, FOLDER, OF_SGD = "sibp_auto", "auto_untuned", "_sgd"
TIMED_AS = {"fashion_mnist": "shallow", "label_noise": "shallow"}  # the same network and batches
FAMILY = ("proxbp", "sibp exact", "sibp cg:3", "sibp cg:5")  # without an outer optimizer
ELSEWHERE = {"label_noise": "label_noise/noise40"}  # problem -> its tuned methods, if not in the arena


@dataclass(frozen=True, eq=False)
class Untuned:
    """A problem with AutoSIBP entered."""

    folder: str  # in results/auto_untuned
    contest: Contest  # on the seeds of the tuned methods, with AutoSIBP's seconds rescaled
    own: Method  # all runs of AutoSIBP
    sgd: Method  # all runs of tuned SGD
    ratio: float  # AutoSIBP's processor time per step over SGD's


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


def tuned_folder(results: Path, problem: str) -> Path:
    """Where the tuned methods of a problem of results/auto_untuned are kept."""
    return results / ELSEWHERE.get(problem, f"{ARENA}/{problem}")


def _untuned(results: Path, folder: Path) -> Untuned:
    kept = tuned_folder(results, folder.name)
    own, further = collect([folder]).runs, folder.with_name(folder.name + OF_SGD)
    more = collect([further]).runs if further.is_dir() else []
    tuned, names = collect([kept]).runs, own_names([results / ARENA, kept], [])
    (before,) = contests(compare(tuned, None, None), names)
    sgd = next(method for method in before.problem.methods if method.name == REFERENCE)
    all_sgd = replace(sgd, runs=sorted([*sgd.runs, *more], key=lambda run: run.seed))
    clock = json.loads((folder.parent / "clock" / "clock.json").read_text())["seconds_per_step"]
    steps = clock[TIMED_AS.get(folder.name, folder.name)]
    ratio = median([mine / theirs for mine, theirs in zip(steps[AUTO], steps[REFERENCE], strict=True)])
    same = [run for run in own if run.seed in before.seeds]
    factor = ratio * pace(sgd) / pace(_method(same))
    same = [retimed(run, factor * run.columns["seconds"], factor * training_seconds(run)) for run in same]
    (contest,) = contests(compare([*tuned, *same], None, None), names)
    return Untuned(folder.name, contest, _method(own), all_sgd, ratio)


def _method(runs: Sequence[Run]) -> Method:
    return Method(AUTO, [], None, None, list(runs))


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
            method.name: median(costs_by_seed(problem.contest, method, target)["seconds"]) + tuning_seconds(method)
            for method in problem.contest.problem.methods
            if method.runs and (method.name == AUTO or tuning_seconds(method))
        }
        mine = of.pop(AUTO)
        if not of:
            return []
        cheapest = min(of, key=lambda name: of[name])
        found.append((target, mine, cheapest, of[cheapest]))
    return found
