"""Tables of AutoSIBP with its default settings against tuned methods."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from sibp.analysis.arena import GOALS
from sibp.analysis.levels import COSTS, LEVELS, scores
from sibp.report.cells import cell_text, seeds_text
from sibp.report.markdown import lines_of_table
from sibp.study.criteria import OpenError
from sibp.study.untuned import AUTO, ELSEWHERE, FAMILY, Untuned, at_the_end, total_costs, untuned


def tables(results: Path) -> dict[str, Callable[[str], str]]:
    """Title -> table."""
    by_goal = {"end": end_table, "total cost": cost_table}
    found = {
        f"{goal} {title}": lambda _, make=make, goal=goal: make(_problems(results), goal)
        for title, make in by_goal.items()
        for goal in GOALS
    }
    return found | {"by the clock": lambda _: clock_table(_problems(results))}


@cache  # several tables use the same runs
def _problems(results: Path) -> list[Untuned]:
    if not (found := untuned(results)):
        raise OpenError
    return found


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
    contests = [each.contest for each in problems if each.folder not in ELSEWHERE]
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
