"""Tables of AutoSIBP with its default settings against tuned methods, and against others with their defaults."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from sibp.analysis.arena import COSTS, GOALS
from sibp.analysis.clock import timed
from sibp.analysis.comparison import Method, Problem
from sibp.analysis.duels import by_seed
from sibp.analysis.levels import LEVELS, scores
from sibp.analysis.outcomes import FINAL_LOSS, Quantity
from sibp.analysis.scoring import BETTER, WORSE, verdict
from sibp.analysis.statistics import median
from sibp.report.cells import cell_text, four_digits, seeds_text
from sibp.report.markdown import lines_of_table
from sibp.study.criteria import OpenError
from sibp.study.untuned import AUTO, ELSEWHERE, FAMILY, Untuned, at_the_end, beside_defaults, total_costs, untuned


def tables(results: Path) -> dict[str, Callable[[str], str]]:
    """Title -> table."""
    tuned: dict[str, Callable[[Any], str]] = {"by the clock": clock_table}
    for goal in GOALS:
        tuned[f"{goal} end"] = partial(end_table, goal=goal)
        tuned[f"{goal} total cost"] = partial(cost_table, goal=goal)
    defaults: dict[str, Callable[[Any], str]] = {
        "untuned training loss": partial(peers_table, quantity=FINAL_LOSS),
        "untuned validation": partial(peers_table, quantity=None),
        "untuned by the clock": peers_by_the_clock,
    }
    return {
        title: partial(_table, read, results, make)
        for read, makers in ((untuned, tuned), (beside_defaults, defaults))
        for title, make in makers.items()
    }


def _table(read: Callable[[Path], Any], results: Path, make: Callable[[Any], str], name: str) -> str:
    del name  # of the experiment: the only one that has such a table
    return make(_kept(read, results))


@cache  # several tables use the same runs
def _kept(read: Callable[[Path], Any], results: Path) -> Any:
    if not (found := read(results)):
        raise OpenError
    return found


def peers_table(problems: Mapping[str, Problem], quantity: Quantity | None) -> str:
    """A row per method: medians and verdicts against AutoSIBP; by the validation metric if ``quantity`` is None."""

    def cell(problem: Problem, method: Method) -> tuple[str, str]:
        of = quantity or problem.quantities[0]
        own, auto = by_seed(method, of), by_seed(_named(problem, AUTO), of)
        word = "" if method.name == AUTO else verdict(own, auto, of.larger_is_better).word
        return f"{four_digits(median(list(own.values())), 3)} {word}".strip(), word

    return _by_method(problems, cell)


def peers_by_the_clock(problems: Mapping[str, Problem]) -> str:
    """A row per method: verdicts by the clock against AutoSIBP on the training loss, with the cost of a step."""

    def cell(problem: Problem, method: Method) -> tuple[str, str]:
        if method.name == AUTO:
            return "1", ""
        found = timed(method, _named(problem, AUTO), problem.clock)
        return (f"{found.measured.median:.2f} {found.word}", found.word) if found else ("–", "")

    return _by_method(problems, cell)


def _by_method(problems: Mapping[str, Problem], cell: Callable[[Problem, Method], tuple[str, str]]) -> str:
    """One row per method, AutoSIBP first, one column per problem; and how many of its verdicts are which."""
    found = {method.name for problem in problems.values() for method in problem.methods}
    names = sorted(found, key=lambda name: (name != AUTO, name))
    rows = []
    for name in names:
        cells = [cell(problem, _named(problem, name)) for problem in problems.values()]
        words = [word for _, word in cells]
        count = "" if name == AUTO else f"{words.count(BETTER)}, {words.count(WORSE)}"
        rows.append([name, *(text for text, _ in cells), count])
    return lines_of_table(["method", *(name.replace("_", " ") for name in problems), "better, worse"], rows)


def _named(problem: Problem, name: str) -> Method:
    return next(method for method in problem.methods if method.name == name)


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
