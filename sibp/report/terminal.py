"""The report in a few lines, for a terminal."""

import textwrap
from collections.abc import Sequence

from sibp.analysis.comparison import Problem
from sibp.analysis.duels import judged_quantities
from sibp.analysis.outcomes import over_runs
from sibp.report.cells import cell_text
from sibp.report.checks import comparability
from sibp.report.verdicts import outcome

MOST_PROBLEMS, WIDTH = 3, 100


def in_short(problems: Sequence[Problem]) -> str:
    """Medians, verdicts and warnings of the first problems, and the number of others."""
    parts = [f"{problem.title}\n{table(problem)}\n\n{_sentences(problem)}" for problem in problems[:MOST_PROBLEMS]]
    more = len(problems) - MOST_PROBLEMS
    return "\n\n".join([*parts, *([f"… and {more} more in the report"] if more > 0 else [])])


def table(problem: Problem) -> str:
    """One line per method: its chosen setting, and medians with 95 % intervals over seeds."""
    quantities = judged_quantities(problem)
    rows = [("method", "setting", "seeds", *(quantity.title for quantity in quantities), "ms/step")]
    for method in problem.methods:
        step = method.step_seconds()
        cells = [cell_text(over_runs(method.runs, quantity.of)) for quantity in quantities]
        rows.append(
            (method.name, method.label or "–", str(len(method.runs)), *cells, f"{1000 * step:.2f}" if step else "–")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _sentences(problem: Problem) -> str:
    """The outcome and the warnings; lines are wrapped, except commands, so that they can be copied."""
    warnings = [f"Warning: {text.text}" for text in comparability(problem) if text.warning]
    return "\n".join(
        line if "sibp train" in line else textwrap.fill(line, WIDTH, break_on_hyphens=False)
        for line in [*outcome(problem), *warnings]
    )
