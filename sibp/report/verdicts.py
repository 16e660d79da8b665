"""Who won: in sentences, as matrices and as tables."""

import math
from collections.abc import Sequence

from sibp.analysis.clock import NOISE, by_the_clock
from sibp.analysis.comparison import Problem
from sibp.analysis.duels import SAME_SECONDS, Answer, Duel, answer, duels, judged_quantities, missing_seeds
from sibp.analysis.scoring import BETTER, MIN_SEEDS, SAME, TOO_FEW, WORSE
from sibp.analysis.statistics import Estimate, holm
from sibp.report.blocks import Block, Cell, Matrix, Table
from sibp.report.cells import cell_text, four_digits
from sibp.report.checks import incomparable
from sibp.runs.repeat import command

MOST_NAMES = 3  # of beaten methods in a sentence
AGAINST = {BETTER: "better than", SAME: "no different from", WORSE: "worse than", TOO_FEW: "not decided against"}
CLOCK_WORDS = {BETTER: "better than", NOISE: "within the noise of", WORSE: "worse than"}


def outcome(problem: Problem) -> list[str]:
    """Who won, how surely and at which cost of a step; if seeds are missing, the commands that add them.

    If the runs started unequally: only a sentence that says so.
    """
    if sum(bool(method.runs) for method in problem.methods) < 2:
        return ["Fewer than two methods have results: there is nothing to compare."]
    if reason := incomparable(problem):
        return reason
    found = duels(problem)
    answers = [each for quantity in judged_quantities(problem) if (each := answer(problem, quantity))]
    sentences = [who_won(each) for each in answers]
    if answers and answers[0].leader:
        sentences.append(_meaning(problem, answers[0]))
    return sentences + _missing(problem, found)


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
    nearest = min(found.duels, key=lambda duel: abs(duel.verdict.difference.median) if duel.verdict.difference else 0.0)
    verdict, rivals = nearest.verdict, _names(found.duels) if len(found.duels) <= MOST_NAMES else "all others"
    return (
        f"{title}: {found.leader.name} won ({cell_text(best)}), better than {rivals}; the nearest, "
        f"{nearest.other.name}, is behind by {_size(verdict.difference)} at the median, on {verdict.wins} of "
        f"{verdict.count} seeds (sign test p = {four_digits(verdict.sign_p)})."
    )


def _against(duels: Sequence[Duel]) -> str:
    """Such as ``better than sgd, no different from adam (0.1 [-0.2, 0.3])``."""
    parts = []
    for word, phrase in AGAINST.items():
        rivals = [duel for duel in duels if duel.verdict.word == word]
        if rivals and word == TOO_FEW:
            parts.append(f"{phrase} {_names(rivals)} (too few shared seeds: fewer than {MIN_SEEDS})")
        elif rivals and word == SAME:
            each = ", ".join(f"{duel.other.name} ({cell_text(duel.verdict.difference)})" for duel in rivals)
            parts.append(f"{phrase} {each}")
        elif rivals:
            parts.append(f"{phrase} {_names(rivals)}")
    return "; ".join(parts)


def _names(duels: Sequence[Duel]) -> str:
    return _listed([duel.other.name for duel in duels])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _size(difference: Estimate | None) -> str:
    if difference is None or difference.low is None or difference.high is None:
        return "unknown size"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"{four_digits(abs(difference.median))} [{four_digits(low)}, {four_digits(high)}]"


def _meaning(problem: Problem, found: Answer) -> str:
    """For the method with the best training loss: its verdicts by the clock, and its measured and break-even costs."""
    timed = [each for each in by_the_clock(problem) if each.method is found.leader and each.word != TOO_FEW]
    if not timed:
        return "There is no verdict by the clock: too few shared seeds, or no recorded seconds."
    words = {word: [each.other.name for each in timed if each.word == word] for word in CLOCK_WORDS}
    *first, last = (f"{CLOCK_WORDS[word]} {_listed(names)}" for word, names in words.items() if names)
    judged = f"{', '.join(first)}, and {last}" if first else last
    against = next((each for each in timed if each.other.name == "sgd"), timed[0])
    name, may, does = against.method.name, cell_text(against.break_even, 3), cell_text(against.measured, 3)
    bound = f", and {name} would still be ahead at up to" if against.word == BETTER else f"; {name} is ahead only below"
    return (
        f"A step of {name} costs {does} times one of {against.other.name}{bound} {may} times. "
        f"By the clock ({clock_of(problem)}), {name} is {judged}."
    )


def clock_of(problem: Problem) -> str:
    """Where a problem's seconds were measured, in words."""
    return "seconds of these runs" if problem.clock is None else "seconds per step measured separately, interleaved"


def clock_table(problem: Problem) -> list[Table]:
    """Every verdict by the clock with its ratios; nothing without seconds."""
    columns = ("method", "verdict", "against", "break-even ratio", "measured ratio", "seeds", "samples")
    rows: list[list[Cell]] = [
        [*(each.method.name, each.word, each.other.name, each.break_even, each.measured),
         each.break_even.count, each.measured.count] for each in by_the_clock(problem)
    ]  # fmt: skip
    title = f"Verdicts by the clock ({clock_of(problem)}): break-even and measured cost ratio of a step"
    return [Table("clock", columns, rows, title, folded=True)] if rows else []


def _missing(problem: Problem, found: Sequence[Duel]) -> list[str]:
    """One line per method with too few seeds: the command that adds them."""
    lines = []
    for method, seeds in missing_seeds(problem, found).items():
        words = command(method.runs[0].config, seeds)
        todo = f"run {words}" if words else f"run the same setting with seed={','.join(map(str, seeds))}"
        lines.append(f"Too few seeds of {method.name} for a verdict: {todo}")
    return lines


def verdicts(problem: Problem) -> list[Block]:
    """A verdict matrix for each metric and by the clock; nothing if there is nothing to compare."""
    found = duels(problem)
    names = [method.name for method in problem.methods if method.runs]
    quantities = dict.fromkeys(duel.quantity for duel in found if duel.quantity != SAME_SECONDS)
    timed = by_the_clock(problem)
    words = {(each.method.name, each.other.name): each.word for each in timed}
    ratios = {(each.method.name, each.other.name): each.measured for each in timed}
    clock = [Matrix("matrix-clock", "by the clock", names, words, ratios, "over")] if timed else []
    return [*(_matrix(quantity, names, found) for quantity in quantities), *clock]


def _matrix(quantity: str, names: Sequence[str], found: Sequence[Duel]) -> Matrix:
    both = [each for duel in found if duel.quantity == quantity for each in (duel, duel.turned())]
    words = {(duel.method.name, duel.other.name): duel.verdict.word for duel in both}
    numbers = {(duel.method.name, duel.other.name): duel.verdict.difference for duel in both}
    return Matrix(f"matrix-{quantity.replace(' ', '-')}", quantity, names, words, numbers)


def verdict_table(problem: Problem) -> list[Table]:
    """Every pairwise verdict with its numbers; nothing if there is nothing to compare."""
    found = duels(problem)
    corrected: dict[Duel, float] = {}
    for quantity in dict.fromkeys(duel.quantity for duel in found):
        family = [duel for duel in found if duel.quantity == quantity and duel.verdict.difference]
        corrected |= zip(family, holm([duel.verdict.sign_p for duel in family]), strict=True)
    columns = ("in", "method", "verdict", "against", "median difference", "seeds", "won / tied / lost")
    columns += ("sign test p", "p by Holm")
    title = f"Pairwise verdicts, paired by seed; difference: method minus the other ({len(found)} comparisons)"
    rows = [_row(duel, corrected.get(duel)) for duel in found]
    return [Table("verdicts", columns, rows, title, folded=True)] if rows else []


def _row(duel: Duel, corrected: float | None) -> list[Cell]:
    found = duel.verdict
    count = found.difference.count if found.difference else 0
    split = f"{found.wins} / {found.ties} / {found.losses}"
    p = found.sign_p if count else None
    return [duel.quantity, duel.method.name, found.word, duel.other.name, found.difference, count, split, p, corrected]
