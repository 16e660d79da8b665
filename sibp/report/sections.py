"""From compared runs to the report's sections."""

from collections import Counter
from collections.abc import Sequence

from sibp.analysis.comparison import Problem
from sibp.report.blocks import Document, Section, Text
from sibp.report.checks import comparability, incomparable
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
from sibp.runs.identity import FINAL
from sibp.runs.reading import Run
from sibp.runs.values import shown


def build(collection: Collection, problems: Sequence[Problem], command: str) -> Document:
    """The report: answer, curves, tables and checks of every problem; then all runs and how the report was made."""
    sections = [each for i, problem in enumerate(problems, start=1) for each in _problem_sections(problem, f"{i:02d}")]
    sections += [
        Section("All runs", [runs_table(problems)], level=2),
        broken_and_notes(collection, problems),
        how_made(collection.runs, command),
    ]
    return Document(f"{_question(problems)} {_about(problems)}", sections, tally(collection), ("verdicts", "clock"))


def _question(problems: Sequence[Problem]) -> str:
    """What the report answers; the method's name if there is only one."""
    methods = {method.name for problem in problems for method in problem.methods}
    return f"{methods.pop()}:" if len(methods) == 1 else "Who won?"


def _about(problems: Sequence[Problem]) -> str:
    """The problem, or the data sets of several."""
    if len(problems) == 1:
        return problems[0].title
    return f"{', '.join(sorted({problem.dataset for problem in problems}))}: {len(problems)} problems"


def _problem_sections(problem: Problem, number: str) -> list[Section]:
    """The answer first (sentences, matrices, intervals), then curves, tables, checks and solver statistics.

    Without verdicts if the runs started unequally.
    """
    checks, judged = comparability(problem), not incomparable(problem)
    warnings, notes = ([text for text in checks if text.warning is wanted] for wanted in (True, False))
    solver = solver_plots(problem, number)
    tables = [*verdict_table(problem), *clock_table(problem)] if judged else []
    matrices = verdicts(problem) if judged else []
    robust = robustness(problem, number)
    first = [*map(Text, outcome(problem)), *warnings, *matrices, *intervals(problem, number)]
    return [
        Section(problem.title, first, level=2),
        Section("Loss and accuracy", curves(problem, number)),
        Section("The chosen setting of every method", [summary_table(problem), *tables]),
        *([Section("Learning-rate robustness", robust)] if robust else []),
        Section(
            "Is the comparison fair?",
            [*notes, Text(choice_text(problem)), budget_table(problem), settings_table(problem)],
        ),
        *([Section("Solver, layer by layer", solver, folded=True)] if solver else []),
    ]


def choice_text(problem: Problem) -> str:
    """How the settings were chosen, for every method."""
    parts = []
    for method in problem.methods:
        choice = method.choice
        if choice is None:
            parts.append(f"{method.name}: no finished run")
        elif len(method.settings) == 1:
            parts.append(f"{method.name}: one setting tried, seeds {_seeds(choice.shown_seeds)}")
        else:
            shown_on = f"shown on {'fresh ' if choice.fresh else 'the same '}seeds {_seeds(choice.shown_seeds)}"
            parts.append(
                f"{method.name}: best of {len(method.settings)} settings over seeds "
                f"{_seeds(choice.tuning_seeds)}, {shown_on}"
            )
    by_a_sweep = any(run.role == FINAL for method in problem.methods for run in method.all_runs)
    how = (
        "by the sweep; its criterion is in tuning.json, beside its runs."
        if by_a_sweep
        else "on validation data only, by final accuracy, then by loss."
        if all(method.validated for method in problem.methods)
        else "on validation data, by final accuracy, then by loss; without any, by final training loss."
    )
    return f"Settings were chosen {how} Test data play no part. {'; '.join(parts)}."


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


def broken_and_notes(collection: Collection, problems: Sequence[Problem]) -> Section:
    """Unusable folders, and corrections and omissions."""
    broken = broken_table(collection) or [Text("No run is broken.")]
    return Section("Broken runs and notes", [*broken, *notes_table(collection, problems)], level=2)


def how_made(runs: Sequence[Run], command: str) -> Section:
    """The command and the recorded environments; the page adds the rules."""
    return Section("How this was made", [Text(f"Made by: {shown(command)}"), versions_table(runs)], level=2)
