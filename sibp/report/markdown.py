"""The report as Markdown."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sibp.report.blocks import Block, Cell, Document, Figure, Link, Matrix, Table, Text
from sibp.report.text import cell_text, relative

MOST_FOLDED = 100  # rows of a table that a reader has to ask for: longer ones would bury the rest
SPECIAL = str.maketrans({c: "\\" + c for c in "\\`*_[]|#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown(document: Document, folder: Path, stem: str, drawn: str | None) -> str:
    """Write the report.

    Args:
        document: the report.
        folder: where the file will lie, for links to run folders.
        stem: what the names of the pictures begin with.
        drawn: their ending; None if there are none.

    Returns:
        Markdown.
    """
    parts = [f"# {_safe(document.title)}", *([_safe(document.summary)] if document.summary else [])]
    for section in document.sections:
        if drawn is None and section.level > 2 and any(isinstance(block, Figure) for block in section.blocks):
            continue  # it is all about its figures
        parts.append(f"{'#' * section.level} {_safe(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block, folder, stem, drawn))]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, folder: Path, stem: str, drawn: str | None) -> str:
    if isinstance(block, Text):
        return f"**Warning:** {_safe(block.text)}" if block.warning else _safe(block.text)
    if isinstance(block, Table):
        return _table(block, folder)
    if isinstance(block, Matrix):
        return _matrix(block)
    return f"![{_safe(block.title)}]({quote(f'{stem}-{block.name}.{drawn}')})" if drawn else ""


def _matrix(matrix: Matrix) -> str:
    rows = [
        [f"**{_safe(method)}**", *(_safe(matrix.words.get((method, other), "–")) for other in matrix.methods)]
        for method in matrix.methods
    ]
    table = lines_of_table([f"{_safe(matrix.title)}: row against column", *map(_safe, matrix.methods)], rows)
    return table.rstrip("\n")


def _table(table: Table, folder: Path) -> str:
    if table.folded and len(table.rows) > MOST_FOLDED:
        return f"{_safe(table.title)}: `sibp report --format html,csv` shows them ({len(table.rows)} rows)."
    lines = [
        "| " + " | ".join(map(_safe, table.columns)) + " |",
        "|" + "---|" * len(table.columns),
        *("| " + " | ".join(_cell(cell, folder) for cell in row) + " |" for row in table.rows),
    ]
    if table.folded:
        return "\n".join([f"<details><summary>{_safe(table.title)}</summary>", "", *lines, "", "</details>"])
    return f"{_safe(table.title)}:\n\n" + "\n".join(lines)


def _cell(cell: Cell, folder: Path) -> str:
    text = _safe(cell_text(cell))
    return f"[{text}]({quote(os.fsencode(relative(cell.path, folder)), safe='/')})" if isinstance(cell, Link) else text


def _safe(text: str) -> str:
    return text.translate(SPECIAL)


def lines_of_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already.

    Args:
        columns: headings.
        rows: cells, as many as columns.

    Returns:
        One line a row, each with its end.
    """
    return "".join("| " + " | ".join(line) + " |\n" for line in (columns, ["---"] * len(columns), *rows))
