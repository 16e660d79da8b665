"""What a report is made of, before it is a web page, Markdown, CSV or pictures."""

from collections.abc import Sequence
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
    """A paragraph; a warning is shown as one."""

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
class Line:
    """One line, with or without a band, or a set of marks, of a figure.

    Attributes:
        label: in the legend if ``named``.
        group: lines of one group share a colour, and hide together.
        x: where.
        y: values; NaN leaves a gap.
        low: lower edge of the band.
        high: upper edge.
        kind: ``median`` (thick), ``seed`` (thin), ``dash`` (thin, dashed), ``points`` (dots) or ``cross`` (crosses).
        texts: what is said of each point.
        named: whether the legend has it.
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
    """

    name: str
    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    x_log: bool = False
    y_log: bool = False


Block = Text | Table | Figure


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
    """The whole report."""

    title: str
    sections: Sequence[Section]

    def blocks(self) -> list[tuple[Section, Block]]:
        """Every block with the heading of the part (level 2) that it belongs to.

        Returns:
            In the order of the report.
        """
        found, part = [], Section("")
        for section in self.sections:
            part = section if section.level == 2 else part
            found += [(part, block) for block in section.blocks]
        return found
