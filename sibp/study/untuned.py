"""AutoSIBP with its one default beside every tuned method: at the end, by the clock, and with tuning paid for.

The tuned methods are the kept runs of the arena (and of another experiment, where a problem is not the arena's), on
their own seeds; AutoSIBP's runs, and further seeds of SGD, are of another day. So **AutoSIBP's seconds are SGD's kept
seconds a step times the ratio of the two**, of processor time measured in turn by scripts/auto_clock.py.

Where AutoSIBP is ranked by seconds it counts with the seeds of the tuned methods, and with all of its own at the end.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sibp.analysis.arena import ARENA, GOALS, REFERENCE, Contest, contests, costs_by_seed, own_names, pace
from sibp.analysis.comparison import Method, compare
from sibp.analysis.duels import by_seed
from sibp.analysis.levels import targets, tuning_seconds
from sibp.analysis.outcomes import Target, training_seconds
from sibp.analysis.scoring import Verdict, verdict
from sibp.analysis.statistics import Estimate, estimate, median
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED
from sibp.runs.reading import Run

AUTO, FOLDER, OF_SGD = "sibp_auto", "auto_untuned", "_sgd"
TIMED_AS = {"fashion_mnist": "shallow", "label_noise": "shallow"}  # the same network and batches
FAMILY = ("proxbp", "sibp exact", "sibp cg:3", "sibp cg:5")  # by themselves, in no other optimizer
ELSEWHERE = {"label_noise": "label_noise/noise40"}  # where the tuned methods of a problem are kept, if not in the arena


@dataclass(frozen=True, eq=False)
class Untuned:
    """A problem with AutoSIBP entered.

    Attributes:
        folder: its name in results/auto_untuned.
        contest: on the seeds of the tuned methods, with AutoSIBP at the pace of their day.
        own: all of AutoSIBP's runs.
        sgd: all runs of SGD as it was tuned.
        ratio: AutoSIBP's processor time of a step over SGD's, measured in turn.
    """

    folder: str
    contest: Contest
    own: Method
    sgd: Method
    ratio: float


@dataclass(frozen=True)
class Beside:
    """AutoSIBP at the end of a problem, beside the best of some tuned methods and beside SGD.

    Attributes:
        own: AutoSIBP's metric, over all its seeds.
        best: name of the tuned method with the best median.
        least: that method's metric, over its seeds.
        within: whether AutoSIBP's median lies within that interval, or on its better side.
        sgd: tuned SGD's, over all its seeds.
        against_sgd: AutoSIBP against it, paired by seed.
    """

    own: Estimate
    best: str
    least: Estimate
    within: bool
    sgd: Estimate
    against_sgd: Verdict


def untuned(results: Path) -> list[Untuned]:
    """Every problem that AutoSIBP was run on with its one default.

    Args:
        results: where evidence is kept.

    Returns:
        In the order of their folders; empty if nothing is kept.
    """
    folders = sorted(path.parent for path in (results / FOLDER).glob("*/" + PACKED))
    return [_untuned(results, folder) for folder in folders if not folder.name.endswith(OF_SGD)]


def tuned_folder(results: Path, problem: str) -> Path:
    """Where the tuned methods of a problem are kept.

    Args:
        results: where evidence is kept.
        problem: its name in results/auto_untuned.
    """
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
    factor = ratio * pace(sgd) / _pace(same)
    same = [_slower(run, factor) for run in same]
    (contest,) = contests(compare([*tuned, *same], None, None), names)
    return Untuned(folder.name, contest, _method(own), all_sgd, ratio)


def _method(runs: Sequence[Run]) -> Method:
    return Method(AUTO, [], None, None, list(runs))


def _pace(runs: Sequence[Run]) -> float:
    return pace(_method(runs))


def _slower(run: Run, factor: float) -> Run:
    seconds = run.columns["seconds"] * factor
    clock = {"train": factor * training_seconds(run)}
    return replace(run, columns=run.columns | {"seconds": seconds}, summary=run.summary | {"seconds": clock})


def at_the_end(problem: Untuned, goal: str, among: Collection[str] | None = None) -> Beside:
    """What AutoSIBP ends with.

    Args:
        problem: the problem.
        goal: one of `GOALS`.
        among: names of the tuned methods it is to be beside; None for all.
    """
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
    """Seconds to each target with the trials paid for: AutoSIBP, which has none, and the cheapest tuned method.

    Args:
        problem: one on which the methods were tuned.
        goal: one of `GOALS`.

    Returns:
        Empty if nothing was tuned there; else for each level (target, AutoSIBP's seconds, the cheapest other method,
        its seconds); medians over seeds, infinite where a target is missed.
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
