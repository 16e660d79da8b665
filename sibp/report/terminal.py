"""The report in a few lines, for a terminal."""

import textwrap
from collections.abc import Sequence

from sibp.analysis.comparison import Problem
from sibp.analysis.duels import judged_quantities
from sibp.report.cells import cell_text
from sibp.report.checks import comparability
from sibp.report.verdicts import outcome

MOST_PROBLEMS, WIDTH = 3, 100


def in_short(problems: Sequence[Problem]) -> str:
    """Medians, verdicts and warnings of the first problems, and the number of others."""
    parts = []
    for problem in problems[:MOST_PROBLEMS]:
        warnings = [f"Warning: {text.text}" for text in comparability(problem) if text.warning]
        lines = [  # wrapped, except commands, so that they can be copied
            line if "sibp train" in line else textwrap.fill(line, WIDTH, break_on_hyphens=False)
            for line in [*outcome(problem), *warnings]
        ]
        parts.append("\n".join([problem.title, table(problem), "", *lines]))
    if (more := len(problems) - MOST_PROBLEMS) > 0:
        parts.append(f"… and {more} more in the report")
    return "\n\n".join(parts)


def table(problem: Problem) -> str:
    """One line per method: its chosen setting, and medians with 95 % intervals over seeds."""
    quantities = judged_quantities(problem)
    rows = [["method", "setting", "seeds", *(quantity.title for quantity in quantities), "ms/step"]]
    for method in problem.methods:
        step = method.step_seconds()
        medians = [method.over_seeds(quantity) for quantity in quantities]
        cells = map(cell_text, (method.name, method.label or None, len(method.runs), *medians))
        rows.append([*cells, f"{1000 * step:.2f}" if step else "–"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([head, "-" * len(head), *lines])
