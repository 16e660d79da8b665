"""The report's sections."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from sibp.analysis.comparison import Problem
from sibp.report import tables
from sibp.report.blocks import Block, Document, Section, Table, Text
from sibp.report.checks import comparability, incomparable
from sibp.report.curves import curves, intervals, robustness, solver_plots
from sibp.report.verdicts import outcome, verdict_tables, verdicts
from sibp.runs.collect import Collection
from sibp.runs.identity import FINAL, method_name
from sibp.runs.reading import Run
from sibp.runs.values import shown


def build(collection: Collection, problems: Sequence[Problem], command: str) -> Document:
    """The report: answer, curves, tables and checks of every problem; then all runs and how the report was made."""
    sections = [each for i, problem in enumerate(problems, start=1) for each in _problem_sections(problem, f"{i:02d}")]
    sections += [
        Section("All runs", [tables.runs_table(problems)], level=2),
        broken_and_notes(collection, problems),
        how_made(collection.runs, command),
    ]
    return Document(_title(problems), sections, tally(collection), ("verdicts", "clock"))


def _title(problems: Sequence[Problem]) -> str:
    """The question (or the method, if there is only one), then the problem, or the data sets of several problems."""
    methods = {method.name for problem in problems for method in problem.methods}
    question = f"{methods.pop()}:" if len(methods) == 1 else "Who won?"
    if len(problems) == 1:
        return f"{question} {problems[0].title}"
    return f"{question} {', '.join(sorted({problem.dataset for problem in problems}))}: {len(problems)} problems"


def _problem_sections(problem: Problem, number: str) -> list[Section]:
    """The answer, then curves, tables, checks and solver statistics; no verdicts if the runs started unequally."""
    checks, judged = comparability(problem), not incomparable(problem)
    warnings, notes = ([text for text in checks if text.warning is wanted] for wanted in (True, False))
    matrices = verdicts(problem) if judged else []
    answers = [*map(Text, outcome(problem)), *warnings, *matrices, *intervals(problem, number)]
    settings = [tables.summary_table(problem), *(verdict_tables(problem) if judged else [])]
    tuning = [Text(choice_text(problem)), tables.budget_table(problem), tables.settings_table(problem)]
    sections = [
        Section(problem.title, answers, level=2),
        Section("Loss and accuracy", curves(problem, number)),
        Section("The chosen setting of every method", settings),
        Section("Learning-rate robustness", robustness(problem, number)),
        Section("Is the comparison fair?", [*notes, *tuning]),
        Section("Solver, layer by layer", solver_plots(problem, number), folded=True),
    ]
    return [section for section in sections if section.blocks]


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
            best = f"best of {len(method.settings)} settings over seeds {_seeds(choice.tuning_seeds)}"
            kind = "fresh" if choice.fresh else "the same"
            parts.append(f"{method.name}: {best}, shown on {kind} seeds {_seeds(choice.shown_seeds)}")
    how = "on validation data, by final accuracy, then by loss; without any, by final training loss."
    if any(run.role == FINAL for run in problem.runs):
        how = "by the sweep; its criterion is in tuning.json, beside its runs."
    elif all(method.validated for method in problem.methods):
        how = "on validation data only, by final accuracy, then by loss."
    return f"Settings were chosen {how} Test data are not used. {'; '.join(parts)}."


def _seeds(seeds: frozenset[int]) -> str:
    """Ranges of seeds, such as ``0–4, 7``."""
    groups = groupby(enumerate(sorted(seeds)), key=lambda each: each[1] - each[0])  # equal within a range
    ranges = [[seed for _, seed in group] for _, group in groups]
    return ", ".join(f"{found[0]}" if len(found) == 1 else f"{found[0]}–{found[-1]}" for found in ranges)


def tally(collection: Collection) -> str:
    """The number of runs by status, in one sentence."""
    count = Counter(run.status for run in collection.runs)
    words = [f"{count[status]} {status}" for status in tables.STATUSES]
    total = len(collection.runs) + len(collection.broken)
    return f"{total} run{'' if total == 1 else 's'}: {', '.join(words)}, {len(collection.broken)} broken."


def broken_and_notes(collection: Collection, problems: Sequence[Problem]) -> Section:
    """Run folders that could not be read, corrected runs and omitted runs."""
    broken = [{"folder": each.path, "reason": each.reason} for each in collection.broken]
    notes = [{"folder": run.path, "note": note} for run in collection.runs for note in run.notes]
    for run, kept in (pair for problem in problems for pair in problem.repeated):
        same = f"omitted: same setting and seed as {shown(kept.path.name)} ({method_name(run.optimizer)})"
        notes.append({"folder": run.path, "note": same})
    blocks: list[Block] = [Text("No run is broken.")]
    if broken:
        blocks = [Table.of("broken", broken, "Broken runs, excluded above")]
    if notes:
        blocks.append(Table.of("notes", notes, "Notes"))
    return Section("Broken runs and notes", blocks, level=2)


def how_made(runs: Sequence[Run], command: str) -> Section:
    """The command and the recorded environments; the web page adds the rules."""
    return Section("How this was made", [Text(f"Made by: {shown(command)}"), tables.versions_table(runs)], level=2)
