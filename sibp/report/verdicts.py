"""Who won: in sentences, as matrices and as tables."""

import math
from collections.abc import Sequence

from sibp.analysis.clock import NOISE, by_the_clock
from sibp.analysis.comparison import Problem
from sibp.analysis.duels import SAME_SECONDS, Answer, Duel, answer, duels, judged_quantities, missing_seeds
from sibp.analysis.scoring import BETTER, MIN_SEEDS, SAME, TOO_FEW, WORSE
from sibp.analysis.statistics import Estimate, holm
from sibp.report.blocks import Cell, Matrix, Table
from sibp.report.cells import cell_text, four_digits
from sibp.report.checks import incomparable
from sibp.runs.repeat import command

MOST_NAMES = 3  # of beaten methods in a sentence
PHRASES = {  # verdict -> its words in a sentence, in the order in which they are said
    BETTER: "better than",
    SAME: "no different from",
    NOISE: "within the noise of",
    WORSE: "worse than",
    TOO_FEW: "not decided against",
}


def outcome(problem: Problem) -> list[str]:
    """Who won, how surely and at which cost of a step; if seeds are missing, the commands that add them.

    If the runs started unequally: only a sentence that says so.
    """
    if sum(bool(method.runs) for method in problem.methods) < 2:
        return ["Fewer than two methods have results: there is nothing to compare."]
    if reason := incomparable(problem):
        return reason
    answers = [each for quantity in judged_quantities(problem) if (each := answer(problem, quantity))]
    sentences = [who_won(each) for each in answers]
    if answers and answers[0].leader:
        sentences.append(_meaning(problem, answers[0]))
    for method, seeds in missing_seeds(problem, duels(problem)).items():
        words = command(method.runs[0].config, seeds)
        todo = f"run {words}" if words else f"run the same setting with seed={','.join(map(str, seeds))}"
        sentences.append(f"Too few seeds of {method.name} for a verdict: {todo}")
    return sentences


def who_won(found: Answer) -> str:
    """Who won in one quantity, by how much and how surely."""
    title = found.quantity.capitalize()
    best = found.medians[0][1]
    if math.isinf(best.median):
        return f"{title}: no method has a finite result at the median."
    if found.leader is None:
        tied = [method.name for method, of in found.medians if of.median == best.median]
        missed = {duel.other for duel in found.duels if duel.verdict.word != BETTER}
        beaten = [method.name for method, _ in found.medians[len(tied) :] if method not in missed]
        both = f"; {'both' if len(tied) == 2 else 'all'} are better than {_listed(beaten)}" if beaten else ""
        return f"{title}: {_listed(tied)} share the best median ({four_digits(best.median)}){both}."
    if not found.duels:
        return f"{title}: only {found.leader.name} has a result ({cell_text(best)})."
    if not found.clear:
        return f"{title}: {found.leader.name} has the best median ({cell_text(best)}); {_against(found.duels)}."
    gaps = [(_size(gap), duel) for duel in found.duels if (gap := duel.verdict.difference)]
    size, nearest = min(gaps, key=lambda each: each[0].median)
    rivals = _listed([duel.other.name for duel in found.duels]) if len(gaps) <= MOST_NAMES else "all others"
    verdict = nearest.verdict
    return (
        f"{title}: {found.leader.name} won ({cell_text(best)}), better than {rivals}; the nearest, "
        f"{nearest.other.name}, is behind by {cell_text(size)} at the median, on {verdict.wins} of "
        f"{verdict.count} seeds (sign test p = {four_digits(verdict.sign_p)})."
    )


def _against(duels: Sequence[Duel]) -> str:
    """Such as ``better than sgd, no different from adam (0.1 [-0.2, 0.3])``."""
    parts = []
    for word, phrase in PHRASES.items():
        rivals = {duel.other.name: cell_text(duel.verdict.difference) for duel in duels if duel.verdict.word == word}
        if rivals and word == SAME:
            parts.append(f"{phrase} {', '.join(f'{name} ({size})' for name, size in rivals.items())}")
        elif rivals:
            few = f" (too few shared seeds: fewer than {MIN_SEEDS})" if word == TOO_FEW else ""
            parts.append(f"{phrase} {_listed(list(rivals))}{few}")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _size(difference: Estimate) -> Estimate:
    """The absolute value of a difference whose interval does not contain 0."""
    low, high = sorted(map(abs, difference.ends))
    return Estimate(abs(difference.median), low, high, difference.count)


def _meaning(problem: Problem, found: Answer) -> str:
    """For the method with the best training loss: its verdicts by the clock, and its measured and break-even costs."""
    timed = [each for each in by_the_clock(problem) if each.method is found.leader and each.word != TOO_FEW]
    if not timed:
        return "There is no verdict by the clock: too few shared seeds, or no recorded seconds."
    words = {word: [each.other.name for each in timed if each.word == word] for word in PHRASES}
    *first, last = (f"{PHRASES[word]} {_listed(names)}" for word, names in words.items() if names)
    judged = f"{', '.join(first)}, and {last}" if first else last
    against = next((each for each in timed if each.other.name == "sgd"), timed[0])
    name, may, does = against.method.name, cell_text(against.break_even, 3), cell_text(against.measured, 3)
    bound = f", and {name} would still be ahead at up to" if against.word == BETTER else f"; {name} is ahead only below"
    return (
        f"A step of {name} costs {does} times one of {against.other.name}{bound} {may} times. "
        f"By the clock ({_clock_of(problem)}), {name} is {judged}."
    )


def _clock_of(problem: Problem) -> str:
    return "seconds of these runs" if problem.clock is None else "seconds per step measured separately, interleaved"


def verdicts(problem: Problem) -> list[Matrix]:
    """A verdict matrix for each metric and by the clock; nothing if there is nothing to compare."""
    names = [method.name for method in problem.methods if method.runs]
    cells: dict[str, dict[tuple[str, str], tuple[str, Estimate | None]]] = {}
    for duel in duels(problem):
        for each in (duel, duel.turned()) if duel.quantity != SAME_SECONDS else ():
            found = cells.setdefault(duel.quantity, {})
            found[each.method.name, each.other.name] = (each.verdict.word, each.verdict.difference)
    matrices = [Matrix(quantity, names, found) for quantity, found in cells.items()]
    timed = {(each.method.name, each.other.name): (each.word, each.measured) for each in by_the_clock(problem)}
    return [*matrices, *([Matrix("by the clock", names, timed, "over")] if timed else [])]


def verdict_tables(problem: Problem) -> list[Table]:
    """Every pairwise verdict with its numbers, then those by the clock; nothing if there is nothing to compare."""
    found = duels(problem)
    corrected: dict[Duel, float] = {}
    for quantity in dict.fromkeys(duel.quantity for duel in found):
        family = [duel for duel in found if duel.quantity == quantity and duel.verdict.difference]
        corrected |= zip(family, holm([duel.verdict.sign_p for duel in family]), strict=True)
    rows: list[list[Cell]] = []
    for duel in found:
        of, seeds = duel.verdict, duel.verdict.count
        row = [duel.quantity, duel.method.name, of.word, duel.other.name, of.difference, seeds]
        rows.append([*row, f"{of.wins} / {of.ties} / {of.losses}", of.sign_p if seeds else None, corrected.get(duel)])
    columns = ("in", "method", "verdict", "against", "median difference", "seeds", "won / tied / lost")
    title = f"Pairwise verdicts, paired by seed; difference: method minus the other ({len(found)} comparisons)"
    pairs = Table("verdicts", (*columns, "sign test p", "p by Holm"), rows, title, folded=True)
    rows = []
    for each in by_the_clock(problem):
        row = [each.method.name, each.word, each.other.name, each.break_even, each.measured]
        rows.append([*row, each.break_even.count, each.measured.count])
    columns = ("method", "verdict", "against", "break-even ratio", "measured ratio", "seeds", "samples")
    title = f"Verdicts by the clock ({_clock_of(problem)}): break-even and measured cost ratio of a step"
    return [table for table in (pairs, Table("clock", columns, rows, title, folded=True)) if table.rows]
