"""Tables as CSV."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Cell, Document, Table
from sibp.report.cells import relative


def csv_files(document: Document, folder: Path) -> dict[str, str]:
    """Name -> CSV with full precision; tables of the same name are merged, with a column for the section."""
    merged: defaultdict[str, list[dict[str, Cell]]] = defaultdict(list)
    for part, block in document.blocks():
        if isinstance(block, Table):
            columns = ("part", *block.columns)
            merged[block.name] += [_csv_row(columns, (part, *row), folder) for row in block.rows]
    files = {}
    for name, rows in merged.items():
        file, columns = io.StringIO(), dict.fromkeys(column for row in rows for column in row)
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files[name] = file.getvalue()
    return files


def _csv_row(columns: Sequence[str], row: Sequence[Cell], folder: Path) -> dict[str, Cell]:
    """``{column: number or text}``; an estimate fills three columns: median, low and high."""
    found: dict[str, Cell] = {}
    for column, cell in zip(map(_guarded, columns), row, strict=True):
        if isinstance(cell, Estimate):
            found |= {column: cell.median, f"{column} (95 % low)": cell.low, f"{column} (95 % high)": cell.high}
        else:
            text = relative(cell, folder) if isinstance(cell, Path) else cell
            found[column] = _guarded(text) if isinstance(text, str) else text
    return found


def _guarded(text: str) -> str:
    """The text, quoted if a spreadsheet would read it as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
