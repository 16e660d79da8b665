"""From compared runs to the report's sections."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce

from sibp.analysis import clock, profile, scoring
from sibp.analysis.comparison import Problem
from sibp.analysis.statistics import INTERVAL_RULE
from sibp.report.blocks import Block, Document, Section, Text
from sibp.report.checks import comparability
from sibp.report.curves import curves, intervals
from sibp.report.robustness import robustness
from sibp.report.solver_plots import solver_plots
from sibp.report.tables import (
    broken_table,
    budget_table,
    notes_table,
    runs_table,
    settings_table,
    summary_table,
    versions_table,
)
from sibp.report.verdicts import clock_table, outcome, verdict_table, verdicts
from sibp.runs.collect import Collection
from sibp.runs.reading import Run
from sibp.runs.values import shown

SECONDS = (
    "Seconds are training seconds as recorded by the runs; seconds per step are the median over the stretches between "
    "logged rows."
)
RULES = (scoring.__doc__, clock.__doc__)
INFINITY = (
    "∞ stands for the loss of a run that diverged or failed and for a target that was missed, −∞ for the accuracy of "
    "such a run."
)


def build(collection: Collection, problems: Sequence[Problem], command: str) -> Document:
    """The report: the answer, curves, tables and checks of every problem, then all runs and how the report was made."""
    sections = [each for i, problem in enumerate(problems, start=1) for each in _problem_sections(problem, f"{i:02d}")]
    sections += [
        Section("All runs", [runs_table(problems)], level=2),
        Section("Broken runs and notes", [*broken_or_none(collection), *notes_table(collection, problems)], level=2),
        Section("How this was made", how_made(collection.runs, command), level=2),
    ]
    return Document("Who won? Training methods compared", sections, tally(collection))


def _problem_sections(problem: Problem, number: str) -> list[Section]:
    """The answer first: sentences, matrices, dots with intervals; then curves, tables, and what the solvers said."""
    warnings, notes = split_warnings(comparability(problem))
    solver = solver_plots(problem, number)
    tables = [summary_table(problem), verdict_table(problem), *clock_table(problem)]
    first = [*map(Text, outcome(problem)), *warnings, *verdicts(problem), *intervals(problem, number)]
    return [
        Section(problem.title, first, level=2),
        Section("Loss and accuracy", curves(problem, number)),
        Section("The chosen setting of every method", tables),
        Section("Learning-rate robustness", robustness(problem, number)),
        Section(
            "Is the comparison fair?",
            [*notes, Text(choice_text(problem)), budget_table(problem), settings_table(problem)],
        ),
        *([Section("Solver, layer by layer", solver, folded=True)] if solver else []),
    ]


def split_warnings(blocks: Sequence[Text]) -> tuple[list[Text], list[Text]]:
    """The warnings, and the rest."""
    return [block for block in blocks if block.warning], [block for block in blocks if not block.warning]


def choice_text(problem: Problem) -> str:
    """How the settings were chosen, for every method."""
    parts = []
    for method in problem.methods:
        choice = method.choice
        if choice is None:
            parts.append(f"{method.name}: no run has ended")
        elif len(method.settings) == 1:
            parts.append(f"{method.name}: the only setting tried, seeds {_seeds(choice.shown_seeds)}")
        else:
            shown_on = f"shown on {'fresh ' if choice.fresh else 'the same '}seeds {_seeds(choice.shown_seeds)}"
            parts.append(
                f"{method.name}: best of {len(method.settings)} settings over seeds "
                f"{_seeds(choice.tuning_seeds)}, {shown_on}"
            )
    return (
        "Settings were chosen on validation data only (final validation accuracy, then validation loss; never test "
        f"data). {'; '.join(parts)}."
    )


def _seeds(seeds: frozenset[int]) -> str:
    """Such as ``0-4, 7``."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in ranges)


def tally(collection: Collection) -> str:
    """The number of runs by status, in one sentence."""
    count = Counter(run.status for run in collection.runs)
    words = [f"{count[status]} {status}" for status in ("completed", "diverged", "failed", "unfinished")]
    total = len(collection.runs) + len(collection.broken)
    return f"{total} run{'' if total == 1 else 's'}: {', '.join(words)}, {len(collection.broken)} broken."


def broken_or_none(collection: Collection) -> list[Block]:
    """The table of unusable folders, or a sentence that there are none."""
    return [broken_table(collection)] if collection.broken else [Text("No run is broken.")]


def how_made(
    runs: Sequence[Run],
    command: str,
    rules: Sequence[str | None] = RULES,
    seconds: str = SECONDS,
) -> list[Block]:
    """The command, the rules and the recorded environments."""
    paragraphs = [part for rule in rules for part in (rule or "").split("\n\n")[1:]]
    numbers = {"**": "", "`MIN_SEEDS`": f"{scoring.MIN_SEEDS}", "`LIMIT`": f"{profile.LIMIT:g}"}
    plain = [
        reduce(lambda text, old: text.replace(old, numbers[old]), numbers, " ".join(p.split())) for p in paragraphs
    ]
    details = [*plain, INTERVAL_RULE, f"{seconds} {INFINITY}".strip()]
    return [Text(f"Made by: {shown(command)}"), *(Text(text, detail=True) for text in details), versions_table(runs)]
