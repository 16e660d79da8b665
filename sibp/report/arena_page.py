"""The report of the arena: all problems together, then each problem."""

import math
from collections.abc import Sequence
from itertools import product

from sibp.analysis import arena
from sibp.analysis.arena import GOALS, UNITS, Contest, Standing, costs, pace, standings
from sibp.analysis.comparison import Method
from sibp.analysis.duels import answer, compared
from sibp.analysis.outcomes import Quantity
from sibp.analysis.performance_profiles import share_within, steps_of
from sibp.analysis.scoring import verdict
from sibp.analysis.statistics import estimate
from sibp.report.blocks import Cell, Document, Figure, Line, Section, Table, Text
from sibp.report.checks import comparability, incomparable
from sibp.report.curves import interval
from sibp.report.sections import broken_and_notes, choice_text, how_made, tally
from sibp.report.tables import budget_table
from sibp.report.verdicts import who_won
from sibp.runs.collect import Collection
from sibp.runs.identity import setting_name

LARGEST_RATIO = 10.0  # right edge of the drawn profiles, in multiples of the fastest method's cost
BEST = 6  # number of methods whose profiles are coloured; the other profiles are grey
CAPTION = (
    "The share of instances that a method solves within a multiple of the fastest method's cost. Left edge: how often "
    "it is the fastest; right edge: how often it reaches the target at all."
)


def build_arena(collection: Collection, contests: Sequence[Contest], command: str) -> Document:
    """The report of all problems together, then of each problem."""
    table = standings(contests)
    problems = [contest.problem for contest in contests]
    first = [*scores(table), Text(CAPTION), *profiles(table), *(standing_table(table, goal) for goal in GOALS)]
    sections = [Section("All problems together", first, level=2)]
    for contest in contests:
        problem, targets = contest.problem, " and ".join(target.title for target in contest.targets.values())
        answers = [who_won(each) for quantity in contest.quantities.values() if (each := answer(problem, quantity))]
        texts = [f"Targets, {arena.REFERENCE}'s final medians: {targets}.", *(incomparable(problem) or answers)]
        sections += [
            Section(problem.title, comparability(problem), level=2),
            Section("Outcome", [*map(Text, texts), outcome_table(contest)]),
            Section("Budget", [budget_table(problem), Text(choice_text(problem))], folded=True),
        ]
    sections += [broken_and_notes(collection, problems), how_made(collection.runs, command)]
    title = f"The arena: {len(table)} methods, {len(problems)} problem{'' if len(problems) == 1 else 's'}"
    return Document(title, sections, tally(collection), ("verdicts", "arena"))


def standing_table(table: Sequence[Standing], goal: str) -> Table:
    """One row per method over all instances, sorted by its score in steps to the target of ``goal``."""
    rows: list[dict[str, Cell]] = []
    for each in _by_score(table, goal, UNITS[0]):
        row: dict[str, Cell] = {"method": each.name, "problems": each.entered, f"place in {goal}": each.places[goal]}
        row["target reached"] = share_within(each.ratios[goal, UNITS[0]], math.inf)
        for unit in UNITS:
            row[f"score in {unit}"], row[f"first in {unit}"] = each.scores[goal, unit], each.firsts[goal, unit]
        rows.append(row)
    note = (
        f"The {goal} target over {len(table[0].ratios[goal, UNITS[0]])} instances: median place and score with 95 % "
        "bootstrap intervals; first: share of resamples in which the method's score is the highest"
    )
    return Table.of(f"standings-{goal}", rows, note)


def _by_score(table: Sequence[Standing], goal: str, unit: str) -> list[Standing]:
    return sorted(table, key=lambda each: -each.scores[goal, unit].median)


def scores(table: Sequence[Standing]) -> list[Figure]:
    """Scores with their intervals: one figure per target and unit of cost, the best method first."""
    found = []
    for goal, unit in product(GOALS, UNITS):
        ranked = _by_score(table, goal, unit)
        lines = [interval(of.name, i, of.scores[goal, unit], muted=i >= BEST) for i, of in enumerate(ranked)]
        title, rows = f"score in {unit}, {goal} target", [each.name for each in ranked]
        found.append(Figure(f"score-{goal}-{unit}", title, "score with 95 % interval", "", lines, rows=rows))
    return found


def profiles(table: Sequence[Standing]) -> list[Figure]:
    """Performance profiles: one figure per target and unit of cost."""
    found = []
    for goal, unit in product(GOALS, UNITS):
        lines = []
        for place, each in enumerate(_by_score(table, goal, unit)):
            tau, height = steps_of(each.ratios[goal, unit], LARGEST_RATIO)
            lines.append(Line(each.name, each.name, tau, height, named=True, muted=place >= BEST))
        lines.sort(key=lambda line: not line.muted)  # grey lines are drawn first, behind the others
        title, axis = f"{unit} to the {goal} target", f"{unit} / {unit} of the fastest"
        found.append(Figure(f"profile-{goal}-{unit}", title, axis, "share of instances", lines, x_log=True))
    return found


def outcome_table(contest: Contest) -> Table:
    """One row per method on one problem."""
    sgd = contest.entry(arena.REFERENCE)
    base = pace(sgd) if sgd else 0.0
    rows: list[dict[str, Cell]] = []
    for method in contest.problem.methods:
        completed = sum(run.status == "completed" for run in method.runs)
        row: dict[str, Cell] = {"method": method.name, "setting": _label(method), "completed": completed}
        for quantity in (contest.problem.quantities[2], *contest.quantities.values()):
            row[quantity.title] = method.over_seeds(quantity)
        row["ms per step"] = 1000 * pace(method)
        row["step cost against SGD"] = pace(method) / base if base else None
        for target, unit in product(contest.targets.values(), UNITS):
            row[f"{unit} to {target.title}"] = estimate([each[unit] for each in costs(method, target).values()])
        for quantity in contest.quantities.values():
            row[f"{quantity.title} against {arena.REFERENCE}"] = _against(method, sgd, quantity)
        rows.append(row)
    return Table.of("outcome", rows, "Medians over seeds with 95 % bootstrap intervals")


def against(contest: Contest, mine: Method, rival: Method) -> list[str | None]:
    """Verdicts on one method, paired by seed: final metrics, then steps and seconds to each target."""
    words = [_against(mine, rival, quantity) for quantity in contest.quantities.values()]
    for target in contest.targets.values():
        needed = [costs(method, target) for method in (mine, rival)]
        for unit in UNITS:
            first, second = ({seed: each[unit] for seed, each in found.items()} for found in needed)
            words.append(verdict(first, second, larger_is_better=False).word)
    return words


def _label(method: Method) -> str | None:
    """The tuned hyper-parameters of the chosen setting; all of them if none was tuned."""
    if method.chosen is None:
        return None
    tuned = {key: value for key, value in method.chosen.optimizer.items() if len(method.grid(key)) > 1}
    return setting_name(tuned or method.chosen.optimizer)


def _against(method: Method, other: Method | None, quantity: Quantity) -> str | None:
    if other is None or method is other:
        return None
    return compared(method, other, quantity).word
