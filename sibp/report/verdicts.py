"""Every two methods of a problem against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sibp.analysis.comparison import Method, Problem
from sibp.analysis.outcomes import FINAL_LOSS, Quantity, at_equal_seconds
from sibp.analysis.scoring import BETTER, SAME, TOO_FEW, WORSE, Verdict, verdict
from sibp.analysis.statistics import median
from sibp.report.blocks import Block, Cell, Table, Text
from sibp.report.text import figure

SAME_SECONDS = "train loss after the same seconds"


@dataclass(frozen=True)
class Duel:
    """Two methods judged in one quantity; the verdict is on the first."""

    quantity: str
    method: Method
    other: Method
    verdict: Verdict


def verdicts(problem: Problem) -> list[Block]:
    """Who is better than whom, in words and as a table.

    Args:
        problem: the problem.

    Returns:
        A sentence for each quantity, then the table; one sentence if there is nothing to compare.
    """
    methods = [method for method in problem.methods if method.runs]
    if len(methods) < 2:
        return [Text("There are no two methods with results: nothing to compare.")]
    quantities = (FINAL_LOSS, problem.quantities[0])
    duels = _duels(methods, quantities)
    sentences = [_sentence(methods, quantity, duels) for quantity in quantities]
    columns = ("in", "method", "verdict", "against", "median difference", "seeds", "won / tied / lost", "sign test p")
    title = f"Pairwise verdicts, paired by seed; difference: method minus the other ({len(duels)} comparisons)"
    return [*map(Text, filter(None, sentences)), Table("verdicts", columns, [_row(duel) for duel in duels], title)]


def _duels(methods: Sequence[Method], quantities: Sequence[Quantity]) -> list[Duel]:
    duels = []
    for quantity in quantities:
        figures = {method: _by_seed(method, quantity) for method in methods}
        for other, method in combinations(methods, 2):
            found = verdict(figures[method], figures[other], quantity.larger_is_better)
            duels.append(Duel(quantity.title, method, other, found))
    for other, method in combinations(methods, 2):
        mine, theirs = _after_equal_seconds(method, other)
        duels.append(Duel(SAME_SECONDS, method, other, verdict(mine, theirs, larger_is_better=False)))
    return duels


def _by_seed(method: Method, quantity: Quantity) -> dict[int, float]:
    figures = {run.seed: quantity.of(run) for run in method.runs}
    return {seed: value for seed, value in figures.items() if value is not None}


def _after_equal_seconds(method: Method, other: Method) -> tuple[dict[int, float], dict[int, float]]:
    theirs = {run.seed: run for run in other.runs}
    mine = [run for run in method.runs if run.seed in theirs]
    pairs = {run.seed: at_equal_seconds(run, theirs[run.seed], "train_loss") for run in mine}
    known = {seed: pair for seed, pair in pairs.items() if pair is not None}
    return {seed: pair[0] for seed, pair in known.items()}, {seed: pair[1] for seed, pair in known.items()}


def _row(duel: Duel) -> list[Cell]:
    found = duel.verdict
    count = found.difference.count if found.difference else 0
    split = f"{found.wins} / {found.ties} / {found.losses}"
    p = found.sign_p if count else None
    return [duel.quantity, duel.method.name, found.word, duel.other.name, found.difference, count, split, p]


def _sentence(methods: Sequence[Method], quantity: Quantity, duels: Sequence[Duel]) -> str:
    """Who has the best median, and whether that says anything about the others."""
    medians = {method: median(list(f.values())) for method in methods if (f := _by_seed(method, quantity))}
    if not medians:
        return ""
    sign = -1 if quantity.larger_is_better else 1
    best = min(medians.values(), key=lambda value: sign * value)
    leaders = [method for method, value in medians.items() if value == best]
    if len(leaders) > 1:
        names = ", ".join(method.name for method in leaders)
        return f"{quantity.title.capitalize()}: {names} share the best median ({figure(best)})."
    leader = leaders[0]
    turned = {BETTER: WORSE, WORSE: BETTER}
    against: dict[str, list[str]] = {}
    for duel in duels:
        if duel.quantity == quantity.title and leader in (duel.method, duel.other):
            word, rival = duel.verdict.word, duel.other
            if leader is duel.other:
                word, rival = turned.get(word, word), duel.method
            against.setdefault(word, []).append(rival.name)
    words = {BETTER: "better than", SAME: "no different from", WORSE: "worse, seed by seed, than"}
    parts = [f"{words[word]} {', '.join(against[word])}" for word in words if word in against]
    if TOO_FEW in against:
        parts.append(f"too few shared seeds to say so against {', '.join(against[TOO_FEW])}")
    return f"{quantity.title.capitalize()}: {leader.name} has the best median ({figure(best)}); {'; '.join(parts)}."
