"""The parts of a report, independent of its format (web page, Markdown, CSV, pictures)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sibp.analysis.statistics import Estimate

Cell = str | int | float | Estimate | Path | None  # a path is shown as a link, by its name


@dataclass(frozen=True)
class Text:
    """A paragraph, or a warning."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table."""

    name: str  # of its CSV file; tables with the same name share one file
    columns: Sequence[str]  # headings
    rows: Sequence[Sequence[Cell]]  # one cell per column
    title: str
    folded: bool = False  # whether it is collapsed at first

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Cell]], title: str, folded: bool = False) -> "Table":
        """A table of one or more rows ``{heading: cell}`` with the same headings."""
        return cls(name, tuple(rows[0]), [list(row.values()) for row in rows], title, folded)


@dataclass(frozen=True)
class Matrix:
    """The verdicts on all pairs of methods."""

    title: str  # the metric
    methods: Sequence[str]  # names of rows and columns
    cells: Mapping[tuple[str, str], tuple[str, Estimate | None]]  # (row, column) -> verdict, median difference or ratio
    of: str = "minus"  # the numbers are row ``minus`` column, or the cost of the row's step ``over`` the column's


@dataclass(frozen=True)
class Line:
    """A line of a figure, with or without a band, or a set of markers."""

    label: str  # in the legend if ``named``
    group: str  # the method; lines of one group share a style, and hide together
    x: np.ndarray  # (n,) positions on the horizontal axis
    y: np.ndarray  # (n,) values; NaN leaves a gap
    low: np.ndarray | None = None  # (n,) lower edge of the band; for ``interval``, the left end
    high: np.ndarray | None = None  # (n,) upper edge of the band; for ``interval``, the right end
    kind: str = "median"  # (thick), ``seed`` (thin), ``points``, ``cross`` or ``interval`` (a dot with a bar)
    texts: Sequence[str] = ()  # a tooltip per point
    named: bool = False  # whether it is in the legend
    detail: str = ""  # its setting or seed
    also: Mapping[str, np.ndarray] = field(default_factory=dict)  # title of another horizontal axis -> (n,) positions
    muted: bool = False  # whether it is drawn in grey, behind the others, and left out of the legend


@dataclass(frozen=True)
class Figure:
    """A figure with one pair of axes."""

    name: str  # of its picture file; unique in a report
    title: str
    x_title: str  # of the horizontal axis
    y_title: str  # of the vertical axis
    lines: Sequence[Line]  # drawn in this order
    x_log: bool = False  # whether the horizontal axis is logarithmic
    y_log: bool = False  # whether the vertical axis is logarithmic
    rows: Sequence[str] = ()  # names along the vertical axis, from the top; empty for a numeric axis
    curves: bool = False  # whether it shows training curves, which the page's switches control

    @property
    def groups(self) -> list[str]:
        """The names of its methods, in the order of drawing."""
        return list(dict.fromkeys(line.group for line in self.lines))


Block = Text | Table | Figure | Matrix


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading."""

    title: str
    blocks: Sequence[Block]  # in order
    folded: bool = False  # whether it is collapsed at first
    level: int = 3  # of the heading


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    sections: Sequence[Section]  # in order
    summary: str = ""  # one line below the title
    rules: Sequence[str] = ()  # rules explained at its end: ``verdicts``, ``clock``, ``arena``

    @property
    def parts(self) -> list[list[Section]]:
        """The sections in groups, each of which begins with a section of level 2."""
        parts: list[list[Section]] = []
        for section in self.sections:
            if section.level == 2 or not parts:
                parts.append([])
            parts[-1].append(section)
        return parts

    def blocks(self) -> list[tuple[str, Block]]:
        """(title of its part, block) for every block, in the order of the report."""
        return [(part[0].title, block) for part in self.parts for section in part for block in section.blocks]

    def figures(self) -> list[Figure]:
        """Every figure, in the order of the report."""
        return [block for _, block in self.blocks() if isinstance(block, Figure)]
