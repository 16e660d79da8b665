"""From compared runs to the report's sections."""

from collections import Counter
from collections.abc import Sequence

from sibp.report import scoring
from sibp.report.blocks import Block, Document, Section, Text
from sibp.report.checks import comparability
from sibp.report.collect import Collection
from sibp.report.comparison import Problem
from sibp.report.curves import curves
from sibp.report.reading import Run
from sibp.report.robustness import robustness
from sibp.report.solver_plots import solver_plots
from sibp.report.statistics import INTERVAL_RULE
from sibp.report.tables import (
    broken_table,
    budget_table,
    notes_table,
    runs_table,
    settings_table,
    summary_table,
    versions_table,
)
from sibp.report.values import shown
from sibp.report.verdicts import verdicts


def build(collection: Collection, problems: Sequence[Problem], command: str) -> Document:
    """Write the report.

    Args:
        collection: all that was read.
        problems: the usable runs, compared.
        command: what was typed to get here.

    Returns:
        The report.
    """
    sections = [Section("What was read", [Text(_tally(collection))], level=2)]
    for i, problem in enumerate(problems, start=1):
        sections += _problem_sections(problem, f"{i:02d}")
    sections += [
        Section("Broken runs and notes", [*_broken(collection), *notes_table(collection, problems)], level=2),
        Section("All runs", [runs_table(problems)], level=2, folded=True),
        Section("How this was made", _method_texts(collection.runs, command), level=2),
    ]
    return Document("Who won? Training methods compared", sections)


def _problem_sections(problem: Problem, number: str) -> list[Section]:
    solver = solver_plots(problem, number)
    return [
        Section(problem.title, comparability(problem), level=2),
        Section("Verdicts", [*verdicts(problem), Text(_choice_text(problem))]),
        Section("The chosen setting of every method", [summary_table(problem)]),
        Section("Loss and accuracy", curves(problem, number)),
        Section("Step-size robustness", robustness(problem, number)),
        Section("Settings tried and budget", [budget_table(problem), settings_table(problem)]),
        *([Section("Solver, layer by layer", solver, folded=True)] if solver else []),
    ]


def _choice_text(problem: Problem) -> str:
    """How settings were chosen, method by method."""
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


def _tally(collection: Collection) -> str:
    count = Counter(run.status for run in collection.runs)
    words = [f"{count[status]} {status}" for status in ("completed", "diverged", "failed", "unfinished")]
    total = len(collection.runs) + len(collection.broken)
    return f"{total} run{'' if total == 1 else 's'}: {', '.join(words)}, {len(collection.broken)} broken."


def _broken(collection: Collection) -> list[Block]:
    return [broken_table(collection)] if collection.broken else [Text("No run is broken.")]


def _method_texts(runs: Sequence[Run], command: str) -> list[Block]:
    rules = (scoring.__doc__ or "").split("\n\n")[1:]
    plain = [" ".join(rule.split()).replace("**", "").replace("`MIN_SEEDS`", str(scoring.MIN_SEEDS)) for rule in rules]
    return [
        Text(f"Made by: {shown(command)}"),
        *map(Text, plain),
        Text(INTERVAL_RULE),
        Text(
            "Seconds are training seconds as recorded by the runs; seconds per step are the median over the stretches "
            "between logged rows. ∞ stands for the loss of a run that diverged or failed and for a target that was "
            "missed, −∞ for the accuracy of such a run."
        ),
        versions_table(runs),
    ]
