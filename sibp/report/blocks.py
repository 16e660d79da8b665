"""What a report is made of, before it is a web page, Markdown, CSV or pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sibp.analysis.statistics import Estimate


@dataclass(frozen=True)
class Link:
    """A folder, shown by its name."""

    path: Path


Cell = str | int | float | Estimate | Link | None


@dataclass(frozen=True)
class Text:
    """A paragraph, or a warning."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table."""

    name: str  # also of its CSV file; tables of one name end up in one file
    columns: Sequence[str]  # headings
    rows: Sequence[Sequence[Cell]]  # cells, as many as columns
    title: str  # what it shows
    folded: bool = False  # whether it is collapsed at first


@dataclass(frozen=True)
class Matrix:
    """Every two methods against each other."""

    name: str  # unique in a report
    title: str  # the metric
    methods: Sequence[str]  # names of rows and columns
    words: Mapping[tuple[str, str], str]  # (row, column) -> the verdict on the row's method against the column's
    # (row, column) -> the median difference, or ratio, with its interval
    numbers: Mapping[tuple[str, str], Estimate | None]
    of: str = "minus"  # what the numbers are: row ``minus`` column, or a step's cost ``over`` the other's


@dataclass(frozen=True)
class Line:
    """One line, with or without a band, or a set of marks, of a figure."""

    label: str  # in the legend if ``named``
    group: str  # the method; lines of one group share a style, and hide together
    x: np.ndarray  # where
    y: np.ndarray  # values; NaN leaves a gap
    low: np.ndarray | None = None  # lower edge of the band; of ``interval``, its left end
    high: np.ndarray | None = None  # upper edge, or right end
    # ``median`` (thick), ``seed`` (thin), ``points`` (dots), ``cross`` (crosses) or ``interval`` (a dot with a
    # horizontal bar)
    kind: str = "median"
    texts: Sequence[str] = ()  # a tooltip per point
    named: bool = False  # whether the legend has it
    detail: str = ""  # its setting or seed
    # title of another horizontal axis -> where on that axis
    also: Mapping[str, np.ndarray] = field(default_factory=dict)
    muted: bool = False  # whether it is drawn in grey, behind the others, and left out of the legend


@dataclass(frozen=True)
class Figure:
    """A figure with one pair of axes."""

    name: str  # also of its picture's file; unique in a report
    title: str  # what it shows
    x_title: str  # of the horizontal axis
    y_title: str  # of the vertical axis
    lines: Sequence[Line]  # drawn in this order
    x_log: bool = False  # whether the horizontal axis is logarithmic
    y_log: bool = False  # whether the vertical axis is
    rows: Sequence[str] = ()  # names along the vertical axis, from the top; none if it has numbers
    curves: bool = False  # whether it is a training curve, which the problem's switches control

    @property
    def groups(self) -> list[str]:
        """The methods in it, in the order of drawing."""
        return list(dict.fromkeys(line.group for line in self.lines))


Block = Text | Table | Figure | Matrix


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)  # in order
    folded: bool = False  # whether it is collapsed at first
    level: int = 3  # of the heading


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    sections: Sequence[Section]  # in order
    summary: str = ""  # one line below the title
    rules: Sequence[str] = ()  # the rules explained at its end: ``verdicts``, ``clock``, ``arena``

    def blocks(self) -> list[tuple[Section, Block]]:
        """Every block with the level-2 section that it belongs to, in the order of the report."""
        found, part = [], Section("")
        for section in self.sections:
            part = section if section.level == 2 else part
            found += [(part, block) for block in section.blocks]
        return found

    def figures(self) -> list[Figure]:
        """Every figure, in the order of the report."""
        return [block for _, block in self.blocks() if isinstance(block, Figure)]
