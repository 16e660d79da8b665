"""Tables as CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Cell, Document, Link, Table
from sibp.report.cells import relative


def csv_files(document: Document, folder: Path) -> dict[str, str]:
    """Name -> CSV with full precision; tables of the same name are merged, with a column for the section."""
    merged: dict[str, list[dict[str, str]]] = {}
    for part, block in document.blocks():
        if isinstance(block, Table):
            rows = [_csv_row(block.columns, row, folder) for row in block.rows]
            merged.setdefault(block.name, []).extend({"part": _guarded(part.title), **row} for row in rows)
    files = {}
    for name, rows in merged.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files[name] = file.getvalue()
    return files


def _csv_row(columns: Sequence[str], row: Sequence[Cell], folder: Path) -> dict[str, str]:
    """``{column: text}``; an estimate fills three columns: median, low and high."""
    found: dict[str, str] = {}
    for column, cell in zip(columns, row, strict=True):
        name = _guarded(column)
        if isinstance(cell, Estimate):
            found[name] = _number(cell.median)
            found[f"{name} (95 % low)"] = _number(cell.low)
            found[f"{name} (95 % high)"] = _number(cell.high)
        elif isinstance(cell, Link):
            found[name] = _guarded(relative(cell.path, folder))
        else:
            found[name] = _guarded(cell) if isinstance(cell, str) else _number(cell)
    return found


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _guarded(text: str) -> str:
    """The text, quoted if a spreadsheet would read it as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
