"""The parts of a report, independent of its format (web page, Markdown, CSV, pictures)."""

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

    name: str  # of its CSV file; tables with the same name share one file
    columns: Sequence[str]  # headings
    rows: Sequence[Sequence[Cell]]  # one cell per column
    title: str
    folded: bool = False  # whether it is collapsed at first


@dataclass(frozen=True)
class Matrix:
    """The verdicts on all pairs of methods."""

    name: str  # unique in a report
    title: str  # the metric
    methods: Sequence[str]  # names of rows and columns
    words: Mapping[tuple[str, str], str]  # (row, column) -> the verdict on the row's method against the column's
    # (row, column) -> the median difference, or ratio, with its interval
    numbers: Mapping[tuple[str, str], Estimate | None]
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
    # ``median`` (thick), ``seed`` (thin), ``points`` (dots), ``cross`` (crosses) or ``interval`` (a dot with a
    # horizontal bar)
    kind: str = "median"
    texts: Sequence[str] = ()  # a tooltip per point
    named: bool = False  # whether it is in the legend
    detail: str = ""  # its setting or seed
    # title of another horizontal axis -> (n,) positions on that axis
    also: Mapping[str, np.ndarray] = field(default_factory=dict)
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
    blocks: Sequence[Block] = field(default_factory=list)  # in order
    folded: bool = False  # whether it is collapsed at first
    level: int = 3  # of the heading


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    sections: Sequence[Section]  # in order
    summary: str = ""  # one line below the title
    rules: Sequence[str] = ()  # rules explained at its end: ``verdicts``, ``clock``, ``arena``

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
