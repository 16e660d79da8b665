"""AutoSIBP with its default settings, against tuned methods and against other methods with their own defaults.

The tuned methods are the kept runs of the arena (or of the experiment in `TUNED_ELSEWHERE`). The seconds of all methods
were measured in turn, `sibp.analysis.clock.KEPT`. Rankings by the clock use the tuned methods' seeds; final metrics use
all seeds of AutoSIBP.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from sibp.analysis.arena import ARENA, COSTS, GOALS, Contest, contests, costs_by_seed, own_names, tuning_seconds
from sibp.analysis.clock import cost_ratios, kept_problems, timed
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import by_seed
from sibp.analysis.levels import LEVELS, scores, targets
from sibp.analysis.outcomes import FINAL_LOSS, Quantity, Target
from sibp.analysis.scoring import BETTER, WORSE, Verdict, verdict
from sibp.analysis.statistics import Estimate, estimate, median
from sibp.report.cells import cell_text, four_digits, seeds_text
from sibp.report.markdown import lines_of_table
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED
from sibp.study.criteria import OpenError

AUTO, FOLDER, OF_SGD = "sibp_auto", "auto_untuned", "_sgd"
PEERS = "untuned_peers"  # folder in results/: other methods with their own defaults
FAMILY = ("proxbp", "sibp exact", "sibp cg:3", "sibp cg:5")  # without an outer optimizer
TUNED_ELSEWHERE = {"label_noise": "label_noise/noise40"}  # problem -> its tuned methods, if not in the arena


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
    least: Estimate  # the metric of ``best``
    within: bool  # whether AutoSIBP's median is within the interval of ``least``, or better
    sgd: Estimate  # the metric of tuned SGD
    against_sgd: Verdict  # paired by seed


def untuned(results: Path) -> list[Untuned]:
    """Every kept problem of results/auto_untuned, in the order of the folders."""
    folders = sorted(path.parent for path in (results / FOLDER).glob("*/" + PACKED))
    return [_untuned(results, folder) for folder in folders if not folder.name.endswith(OF_SGD)]


def _untuned(results: Path, folder: Path) -> Untuned:
    kept = results / TUNED_ELSEWHERE.get(folder.name, f"{ARENA}/{folder.name}")
    own, tuned = collect([folder]).runs, collect([kept]).runs
    more_seeds = folder.with_name(folder.name + OF_SGD)
    more = collect([more_seeds]).runs if more_seeds.is_dir() else []
    seeds = {run.seed for run in tuned}
    problems = kept_problems([*tuned, *(run for run in own if run.seed in seeds)], results, ARENA)
    (contest,) = contests(problems, own_names([results / ARENA, kept], []))
    methods = contest.problem.by_name
    sgd = methods["sgd"]
    ratio = median(cost_ratios(methods[AUTO], sgd, contest.problem.clock))
    all_sgd = replace(sgd, runs=sorted([*sgd.runs, *more], key=lambda run: run.seed))
    return Untuned(folder.name, contest, Method(AUTO, [], None, None, list(own)), all_sgd, ratio)


def beside_defaults(results: Path) -> dict[str, Problem]:
    """``{folder: problem}`` of results/untuned_peers, with AutoSIBP entered on the same seeds."""
    found = {}
    for folder in sorted(path.parent for path in (results / PEERS).glob("*/" + PACKED)):
        own, rivals = results / FOLDER / folder.name, collect([folder]).runs
        seeds = {run.seed for run in rivals}
        entered = [run for run in collect([own]).runs if run.seed in seeds] if own.is_dir() else []
        (found[folder.name],) = kept_problems([*rivals, *entered], results, PEERS)
    return found


def at_the_end(problem: Untuned, goal: str, among: Collection[str] | None = None) -> Beside:
    """AutoSIBP's final metric for one of `GOALS`, against the tuned methods in ``among`` (default: all)."""
    quantity = problem.contest.quantities[GOALS.index(goal)]
    sign = -1 if quantity.larger_is_better else 1
    rivals = {
        method.name: list(by_seed(method, quantity).values())
        for method in problem.contest.problem.methods
        if method.runs and method.name != AUTO and (among is None or method.name in among)
    }
    best = min(rivals, key=lambda name: sign * median(rivals[name]))
    own, sgd = by_seed(problem.own, quantity), by_seed(problem.sgd, quantity)
    mine, least, reference = (estimate(list(values)) for values in (own.values(), rivals[best], sgd.values()))
    if not (mine and least and reference):
        raise OpenError(f"a method has no {quantity.title} in results/{FOLDER}/{problem.folder}")
    within = sign * mine.median <= max(sign * end for end in least.ends)
    return Beside(mine, best, least, within, reference, verdict(own, sgd, quantity.larger_is_better))


def total_costs(problem: Untuned, goal: str) -> list[tuple[Target, float, str, float]]:
    """Seconds to each target including tuning trials, of which AutoSIBP has none.

    Returns:
        For each level (target, AutoSIBP's seconds, the cheapest tuned method, its seconds). Seconds are medians over
        seeds, infinite for a missed target. The list is empty if no method was tuned on the problem.
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


def tables(results: Path) -> dict[str, Callable[[str], str]]:
    """``{title: function that makes the table}``; the function's argument, the experiment, is always the same."""
    tuned, defaults = (cache(partial(_kept, read, results)) for read in (untuned, beside_defaults))
    makers = {"end": end_table, "total cost": cost_table}
    return {
        "by the clock": lambda _: clock_table(tuned()),
        **{
            f"{goal} {title}": lambda _, make=make, goal=goal: make(tuned(), goal)
            for goal in GOALS
            for title, make in makers.items()
        },
        "untuned training loss": lambda _: peers_table(defaults(), FINAL_LOSS),
        "untuned validation": lambda _: peers_table(defaults(), None),
        "untuned by the clock": lambda _: peers_by_the_clock(defaults()),
    }


def _kept(read: Callable[[Path], Any], results: Path) -> Any:
    if not (found := read(results)):
        raise OpenError
    return found


def peers_table(problems: Mapping[str, Problem], quantity: Quantity | None) -> str:
    """A row per method: medians and verdicts against AutoSIBP; ``quantity`` None is the final validation metric."""

    def cell(problem: Problem, method: Method) -> tuple[str, str]:
        of = quantity or problem.quantities[0]
        own, auto = by_seed(method, of), by_seed(problem.by_name[AUTO], of)
        word = "" if method.name == AUTO else verdict(own, auto, of.larger_is_better).word
        return f"{four_digits(median(list(own.values())), 3)} {word}".strip(), word

    return _by_method(problems, cell)


def peers_by_the_clock(problems: Mapping[str, Problem]) -> str:
    """A row per method: verdicts by the clock against AutoSIBP, with the cost of a step in steps of AutoSIBP."""

    def cell(problem: Problem, method: Method) -> tuple[str, str]:
        if method.name == AUTO:
            return "1", ""
        found = timed(method, problem.by_name[AUTO], problem.clock)
        return (f"{found.measured.median:.2f} {found.word}", found.word) if found else ("–", "")

    return _by_method(problems, cell)


def _by_method(problems: Mapping[str, Problem], cell: Callable[[Problem, Method], tuple[str, str]]) -> str:
    """One row per method, AutoSIBP first; one column per problem, and the number of verdicts better and worse."""
    names = {method.name for problem in problems.values() for method in problem.methods}
    rows = []
    for name in sorted(names, key=lambda name: (name != AUTO, name)):
        cells = [cell(problem, problem.by_name[name]) for problem in problems.values()]
        words = [word for _, word in cells]
        count = "" if name == AUTO else f"{words.count(BETTER)}, {words.count(WORSE)}"
        rows.append([name, *(text for text, _ in cells), count])
    return lines_of_table(["method", *(name.replace("_", " ") for name in problems), "better, worse"], rows)


def end_table(problems: Sequence[Untuned], goal: str) -> str:
    """Final metrics of AutoSIBP, the best tuned method, the best of its family, and SGD."""
    rows = []
    for problem in problems:
        every, family = at_the_end(problem, goal), at_the_end(problem, goal, FAMILY)
        beside = [f"{each.best} {cell_text(each.least)}: {'yes' if each.within else 'no'}" for each in (every, family)]
        against = seeds_text(every.against_sgd)
        rows.append([_name(problem), cell_text(every.own), *beside, cell_text(every.sgd), against])
    columns = ["problem", f"AutoSIBP, {goal}", "best of all tuned: within?", "best tuned proximal method: within?"]
    return lines_of_table([*columns, "tuned SGD", "AutoSIBP against it"], rows)


def cost_table(problems: Sequence[Untuned], goal: str) -> str:
    """Seconds to each target including tuning, of AutoSIBP and of the cheapest tuned method."""
    rows = []
    for problem in problems:
        if not (costs := total_costs(problem, goal)):
            continue
        cells = [f"{target.value:.4g}: {_against(mine, best, theirs)}" for target, mine, best, theirs in costs]
        rows.append([_name(problem), f"{problem.ratio:.2f}", *cells])
    return lines_of_table(["problem", "a step costs, of SGD's", *LEVELS], rows)


def clock_table(problems: Sequence[Untuned]) -> str:
    """AutoSIBP's score in the arena, and the highest one, by every cost."""
    contests = [each.contest for each in problems if each.folder not in TUNED_ELSEWHERE]
    rows = []
    for goal in GOALS:
        found = scores(contests, goal)
        for level in LEVELS:
            cells = []
            for cost in COSTS:
                of = {name: by[level, cost] for name, by in found.items()}
                first = max(of, key=lambda name: of[name])
                place = 1 + sum(score > of[AUTO] for score in of.values())
                cells.append(f"{of[AUTO]:.2f}, place {place}; first {first}, {of[first]:.2f}")
            rows.append([f"{goal}, {level}", *cells])
    return lines_of_table(["target", *COSTS], rows)


def _against(mine: float, cheapest: str, theirs: float) -> str:
    if math.isinf(mine):
        return "missed"
    if math.isinf(theirs):
        return f"{mine:.2g} s, no tuned method gets there"
    return f"{mine:.2g} s against {theirs:.2g} s ({cheapest}), {theirs / mine:.2g} times less"


def _name(problem: Untuned) -> str:
    return problem.folder.replace("_", " ")
