"""AutoSIBP with its default settings, against tuned methods, against other untuned methods, and at all step sizes.

The tuned methods are the kept runs of the arena (or of the experiment in `TUNED_ELSEWHERE`). Seconds per step of all
methods were measured in turns (`sibp.analysis.clock.KEPT`). Rankings by the clock use the tuned methods' seeds; final
metrics use all seeds of AutoSIBP.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from sibp.analysis import arena
from sibp.analysis.arena import ARENA, COSTS, GOALS, LEVELS, Contest, instance_costs, own_names, tuning_seconds
from sibp.analysis.clock import cost_ratios, kept_problems, timed
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import compared
from sibp.analysis.outcomes import FINAL_LOSS, Quantity, Target
from sibp.analysis.scoring import BETTER, WORSE
from sibp.analysis.statistics import Estimate, median
from sibp.analysis.step_sizes import losses
from sibp.report.cells import cell_text, four_digits, seeds_text
from sibp.report.markdown import lines_of_table
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED
from sibp.study.criteria import Evidence, OpenError
from sibp.study.experiments import Experiment

AUTO, FOLDER, OF_SGD = "sibp_auto", "auto_untuned", "_sgd"
PEERS = "untuned_peers"  # folder in results/: other methods with their own defaults
FAMILY = ("proxbp", "sibp exact", "sibp cg:3", "sibp cg:5")  # without an outer optimizer
SAFE = (0.01, 0.1, 1.0, 10.0, 100.0)  # step sizes with a column in `safety_table`; its last column covers all of them
TUNED_ELSEWHERE = {"label_noise": "label_noise/noise40"}  # problem -> its tuned methods, if not in the arena


@dataclass(frozen=True, eq=False)
class Untuned:
    """A problem with AutoSIBP entered."""

    folder: str  # in results/auto_untuned
    contest: Contest  # on the seeds of the tuned methods
    own: Method  # all runs of AutoSIBP
    sgd: Method  # all runs of tuned SGD
    ratio: float  # AutoSIBP's seconds per step over SGD's


def untuned(results: Path) -> list[Untuned]:
    """Every kept problem of results/auto_untuned, in the order of the folders."""
    found = []
    for folder in _kept_below(results / FOLDER):
        if folder.name.endswith(OF_SGD):
            continue
        tuned_runs = results / TUNED_ELSEWHERE.get(folder.name, f"{ARENA}/{folder.name}")
        own, tuned = collect([folder]).runs, collect([tuned_runs]).runs
        seeds = {run.seed for run in tuned}
        problems = kept_problems([*tuned, *(run for run in own if run.seed in seeds)], results, ARENA)
        (contest,) = arena.contests(problems, own_names([results / ARENA, tuned_runs], []))
        auto, sgd = (contest.problem.by_name[name] for name in (AUTO, "sgd"))
        ratio = median(cost_ratios(auto, sgd, contest.problem.clock))
        more_seeds = folder.with_name(folder.name + OF_SGD)
        more = collect([more_seeds]).runs if more_seeds.is_dir() else []
        all_sgd = replace(sgd, runs=sorted([*sgd.runs, *more], key=lambda run: run.seed))
        found.append(Untuned(folder.name, contest, replace(auto, runs=list(own)), all_sgd, ratio))
    return found


def beside_defaults(results: Path) -> dict[str, Problem]:
    """``{folder: problem}`` of results/untuned_peers, with AutoSIBP entered on the same seeds."""
    found = {}
    for folder in _kept_below(results / PEERS):
        own, rivals = results / FOLDER / folder.name, collect([folder]).runs
        seeds = {run.seed for run in rivals}
        entered = [run for run in collect([own]).runs if run.seed in seeds] if own.is_dir() else []
        (found[folder.name],) = kept_problems([*rivals, *entered], results, PEERS)
    return found


def _kept_below(folder: Path) -> list[Path]:
    if not (found := sorted(path.parent for path in folder.glob("*/" + PACKED))):
        raise OpenError
    return found


def tables(results: Path) -> dict[str, Callable[[str], str]]:
    """``{title: function that makes the table}``; the function's argument, the experiment, is always the same."""
    tuned, defaults = cache(lambda: untuned(results)), cache(lambda: beside_defaults(results))
    found: dict[str, Callable[[str], str]] = {
        "by the clock": lambda _: clock_table(tuned()),
        "untuned training loss": lambda _: peers_table(defaults(), lambda problem: FINAL_LOSS),
        "untuned validation": lambda _: peers_table(defaults(), lambda problem: problem.quantities[0]),
        "untuned by the clock": lambda _: peers_by_the_clock(defaults()),
    }
    for goal in GOALS:
        found[f"{goal} end"] = lambda _, goal=goal: end_table(tuned(), goal)
        found[f"{goal} total cost"] = lambda _, goal=goal: cost_table(tuned(), goal)
    return found


def peers_table(problems: Mapping[str, Problem], quantity: Callable[[Problem], Quantity]) -> str:
    """A row per method: medians and verdicts against AutoSIBP."""

    def cell(problem: Problem, method: Method) -> str:
        of = quantity(problem)
        text = four_digits(median(list(method.by_seed(of).values())), 3)
        return text if method.name == AUTO else f"{text} {compared(method, problem.by_name[AUTO], of).word}"

    return _by_method(problems, cell)


def peers_by_the_clock(problems: Mapping[str, Problem]) -> str:
    """A row per method: verdicts by the clock against AutoSIBP, with the cost of a step in steps of AutoSIBP."""

    def cell(problem: Problem, method: Method) -> str:
        if method.name == AUTO:
            return "1"
        found = timed(method, problem.by_name[AUTO], problem.clock)
        return f"{found.measured.median:.2f} {found.word}" if found else "–"

    return _by_method(problems, cell)


def _by_method(problems: Mapping[str, Problem], cell: Callable[[Problem, Method], str]) -> str:
    """One row per method, AutoSIBP first; one column per problem, and the number of verdicts better and worse."""
    names = {method.name for problem in problems.values() for method in problem.methods}
    rows = []
    for name in sorted(names, key=lambda name: (name != AUTO, name)):
        cells = [cell(problem, problem.by_name[name]) for problem in problems.values()]
        better, worse = (sum(text.endswith(word) for text in cells) for word in (BETTER, WORSE))
        rows.append([name, *cells, "" if name == AUTO else f"{better}, {worse}"])
    return lines_of_table(["method", *(name.replace("_", " ") for name in problems), "better, worse"], rows)


def best_tuned(problem: Untuned, goal: str, among: Collection[str] | None = None) -> tuple[str, Estimate, bool]:
    """The method with the best final median for one of `GOALS` among tuned methods, by default all of them.

    Returns:
        Its name, its metric, and whether AutoSIBP's median is within the interval of this metric, or better.
    """
    quantity = problem.contest.quantities[goal]
    tuned = [method for method in problem.contest.entered if method.name != AUTO]
    rivals = {
        method.name: found
        for method in tuned
        if (among is None or method.name in among) and (found := method.over_seeds(quantity))
    }
    name = min(rivals, key=lambda name: quantity.sign * rivals[name].median)
    mine = median(list(problem.own.by_seed(quantity).values()))
    worse_end = max(quantity.sign * end for end in rivals[name].ends)
    return name, rivals[name], quantity.sign * mine <= worse_end


def end_table(problems: Sequence[Untuned], goal: str) -> str:
    """Final metrics of AutoSIBP, the best tuned method, the best of its family, and SGD."""
    rows = []
    for problem in problems:
        quantity = problem.contest.quantities[goal]
        own, sgd = (method.over_seeds(quantity) for method in (problem.own, problem.sgd))
        best = [best_tuned(problem, goal), best_tuned(problem, goal, FAMILY)]
        cells = [f"{name} {cell_text(found)}: {'yes' if within else 'no'}" for name, found, within in best]
        against = seeds_text(compared(problem.own, problem.sgd, quantity))
        rows.append([problem.folder.replace("_", " "), cell_text(own), *cells, cell_text(sgd), against])
    columns = ["problem", f"AutoSIBP, {goal}", "best tuned method: matched?", "best tuned proximal method: matched?"]
    return lines_of_table([*columns, "tuned SGD", "AutoSIBP against it"], rows)


def cost_table(problems: Sequence[Untuned], goal: str) -> str:
    """Seconds to each target including tuning, of AutoSIBP and of the cheapest tuned method."""
    rows = []
    for problem in problems:
        if costs := total_costs(problem, goal):
            cells = [f"{target.value:.4g}: {_against(mine, best, theirs)}" for target, mine, best, theirs in costs]
            rows.append([problem.folder.replace("_", " "), f"{problem.ratio:.2f}", *cells])
    return lines_of_table(["problem", "step cost relative to SGD", *LEVELS], rows)


def total_costs(problem: Untuned, goal: str) -> list[tuple[Target, float, str, float]]:
    """Seconds to each target including tuning trials, of which AutoSIBP has none.

    Returns:
        For each level (target, AutoSIBP's seconds, the cheapest tuned method, its seconds). Seconds are medians over
        seeds, infinite for a missed target. The list is empty if no method was tuned on the problem.
    """
    tuned = [method.name for method in problem.contest.entered if method.name != AUTO and tuning_seconds(method)]
    found = []
    for target in arena.targets(problem.contest, goal) if tuned else ():
        costs = instance_costs({problem.contest: target})["seconds with tuning"]
        seconds = {name: median(values) for name, values in costs.items()}
        cheapest = min(tuned, key=lambda name: seconds[name])
        found.append((target, seconds[AUTO], cheapest, seconds[cheapest]))
    return found


def _against(mine: float, cheapest: str, theirs: float) -> str:
    if math.isinf(mine):
        return "missed"
    if math.isinf(theirs):
        return f"{_digits(mine, 2)} s, no tuned method gets there"
    return f"{_digits(mine, 2)} s; {cheapest} {_digits(theirs, 2)} s, {_digits(theirs / mine, 2)} times as long"


def clock_table(problems: Sequence[Untuned]) -> str:
    """AutoSIBP's score in the arena, and the highest one, by every cost."""
    contests = [each.contest for each in problems if each.folder not in TUNED_ELSEWHERE]
    rows = []
    for goal in GOALS:
        found = arena.scores(contests, goal)
        for level in LEVELS:
            cells = []
            for cost in COSTS:
                of = {name: by[level, cost] for name, by in found.items()}
                first = max(of, key=lambda name: of[name])
                place = 1 + sum(score > of[AUTO] for score in of.values())
                leader = "" if place == 1 else f" (1: {first}, {of[first]:.2f})"
                cells.append(f"{of[AUTO]:.2f}, rank {place}{leader}")
            rows.append([f"{goal}, {level}", *cells])
    return lines_of_table(["target", *COSTS], rows)


def safety_table(evidence: Evidence, experiment: Experiment) -> str:
    """One row per part of the experiment, whose name is PROBLEM_INITIALISATION."""
    rows = []
    for part in experiment.commands:
        problem, _, init = part.rpartition("_")
        rows.append([problem.replace("_", " "), init, *safety(evidence.problem(f"{experiment.name}/{part}"))])
    ends = [f"lr {lr:g}" for lr in SAFE]
    return lines_of_table(["problem", "initialisation", "runs", "start", *ends, "largest ratio of end to start"], rows)


def safety(problem: Problem) -> Sequence[str]:
    """The number of runs, their first loss, the final losses at `SAFE`, and the largest ratio of last to first loss.

    Losses are medians over seeds. The final loss of a diverged run is infinite.
    """
    found = list(losses(problem.by_name[AUTO], {}).values())
    pairs = [pair for by_lr in found for pair in by_lr.values()]
    medians = [median([start for start, _ in pairs]), *(median([by_lr[lr][1] for by_lr in found]) for lr in SAFE)]
    worst = max(end / start if math.isfinite(end) else math.inf for start, end in pairs)
    return [str(len(pairs)), *(_digits(value, 3) for value in medians), f"{worst:.2f}"]


def _digits(value: float, digits: int) -> str:
    """A number of significant digits, without an exponent."""
    return np.format_float_positional(value, digits, fractional=False, trim="-") if math.isfinite(value) else str(value)
