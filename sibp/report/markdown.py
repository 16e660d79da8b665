"""The report as Markdown."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sibp.report.blocks import Block, Cell, Document, Link, Table, Text
from sibp.report.text import cell_text, relative

SPECIAL = str.maketrans({c: "\\" + c for c in "\\`*_[]|#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown(document: Document, folder: Path, pictures: str | None) -> str:
    """Write the report.

    Args:
        document: the report.
        folder: where the file will lie, for links to run folders.
        pictures: what the names of the pictures begin with; None if there are none.

    Returns:
        Markdown.
    """
    parts = [f"# {_safe(document.title)}"]
    for section in document.sections:
        parts.append(f"{'#' * section.level} {_safe(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block, folder, pictures))]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, folder: Path, pictures: str | None) -> str:
    if isinstance(block, Text):
        return f"**Warning:** {_safe(block.text)}" if block.warning else _safe(block.text)
    if isinstance(block, Table):
        return _table(block, folder)
    return f"![{_safe(block.title)}]({quote(f'{pictures}-{block.name}.png')})" if pictures else ""


def _table(table: Table, folder: Path) -> str:
    lines = [
        "| " + " | ".join(map(_safe, table.columns)) + " |",
        "|" + "---|" * len(table.columns),
        *("| " + " | ".join(_cell(cell, folder) for cell in row) + " |" for row in table.rows),
    ]
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
