"""Text of table cells."""

import math
import os
from pathlib import Path
from urllib.parse import quote

from sibp.analysis.scoring import Verdict
from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Cell
from sibp.runs.packed import PACKED
from sibp.runs.values import shown


def four_digits(value: float, digits: int = 4) -> str:
    """A number with ``digits`` significant digits.

    Example:
        >>> four_digits(0.97449), four_digits(5500.0), four_digits(-0.0), four_digits(float("-inf"))
        ('0.9745', '5500', '0', '−∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value + 0.0:.{digits}g}"  # -0.0 + 0.0 is 0.0


def cell_text(cell: Cell, digits: int = 4) -> str:
    """A cell as text; an estimate is its median, followed by its interval in brackets."""
    if cell is None:
        return "–"
    if isinstance(cell, Estimate):
        median, low, high = (four_digits(value, digits) for value in (cell.median, *cell.ends))
        return median if cell.low is None else f"{median} [{low}, {high}]"
    if isinstance(cell, Path):
        return shown(cell.name or str(cell))
    return four_digits(cell) if isinstance(cell, float) else str(cell) if isinstance(cell, int) else cell


def seeds_text(found: Verdict) -> str:
    """A verdict with its number of wins, such as ``better, 18 of 20 seeds``."""
    return f"{found.word}, {found.wins} of {found.count} seeds"


def is_number(cell: Cell) -> bool:
    """Whether a cell is right-aligned: a number or an estimate."""
    return isinstance(cell, int | float | Estimate)


def relative(path: Path, folder: Path) -> str:
    """The relative path from the report's folder to a run, or to the packed file that contains it."""
    if not os.path.exists(path) and (path.parent / PACKED).exists():
        path = path.parent / PACKED
    return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))).as_posix()


def link(path: Path, folder: Path) -> str:
    """The same path, percent-encoded for a link."""
    return quote(os.fsencode(relative(path, folder)), safe="/")
