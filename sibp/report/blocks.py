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
    """A table.

    Attributes:
        name: also of its CSV file; tables of one name end up in one file.
        columns: headings.
        rows: cells, as many as columns.
        title: what it shows.
        folded: whether a reader has to ask for it.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str
    folded: bool = False


@dataclass(frozen=True)
class Matrix:
    """Every two methods against each other.

    Attributes:
        name: unique in a report.
        title: in what they are compared.
        methods: names of rows and columns.
        words: (row, column) -> the verdict on the row's method against the column's.
        numbers: (row, column) -> the median difference, or ratio, with its interval.
        of: what the numbers are: row ``minus`` column, or a step's cost ``over`` the other's.
    """

    name: str
    title: str
    methods: Sequence[str]
    words: Mapping[tuple[str, str], str]
    numbers: Mapping[tuple[str, str], Estimate | None]
    of: str = "minus"


@dataclass(frozen=True)
class Line:
    """One line, with or without a band, or a set of marks, of a figure.

    Attributes:
        label: in the legend if ``named``.
        group: the method; lines of one group share a style, and hide together.
        x: where.
        y: values; NaN leaves a gap.
        low: lower edge of the band; of ``interval``, its left end.
        high: upper edge, or right end.
        kind: ``median`` (thick), ``seed`` (thin), ``points`` (dots), ``cross`` (crosses) or ``interval`` (a dot with a
            horizontal bar).
        texts: what is said of each point.
        named: whether the legend has it.
        detail: the setting or seed that it is of.
        also: title of another horizontal axis -> where on that axis.
        muted: whether it is drawn in grey, behind the others, and left out of the legend.
    """

    label: str
    group: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    kind: str = "median"
    texts: Sequence[str] = ()
    named: bool = False
    detail: str = ""
    also: Mapping[str, np.ndarray] = field(default_factory=dict)
    muted: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure with one pair of axes.

    Attributes:
        name: also of its picture's file; unique in a report.
        title: what it shows.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        lines: drawn in this order.
        x_log: whether the horizontal axis is logarithmic.
        y_log: whether the vertical axis is.
        rows: names along the vertical axis, from the top; none if it has numbers.
        curves: whether it is a curve of training, which all switches of a problem act on.
    """

    name: str
    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    x_log: bool = False
    y_log: bool = False
    rows: Sequence[str] = ()
    curves: bool = False

    @property
    def groups(self) -> list[str]:
        """The methods in it, in the order of drawing."""
        return list(dict.fromkeys(line.group for line in self.lines))


Block = Text | Table | Figure | Matrix


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        title: the heading.
        blocks: in order.
        folded: whether a reader has to ask for it.
        level: 2 for a part of its own, 3 for a part of the one before.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    folded: bool = False
    level: int = 3


@dataclass(frozen=True)
class Document:
    """The whole report.

    Attributes:
        title: the heading.
        sections: in order.
        summary: one line below the title.
        rules: which rules the page explains at its end: ``verdicts``, ``clock``, ``arena``.
    """

    title: str
    sections: Sequence[Section]
    summary: str = ""
    rules: Sequence[str] = ()

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
