"""Tables as CSV and figures as pictures."""

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Cell, Document, Figure, Line, Link, Table
from sibp.report.plotly_figures import GRID, colours
from sibp.report.text import relative
from sibp.runs.folder import write_atomic

LONGEST_TITLE, LONGEST_LABEL = 70, 45  # characters in a picture; a legend of two columns must leave room for the axes


def csv_files(document: Document, folder: Path) -> dict[str, str]:
    """Every table with full precision; tables of one name are put together, each row with the part it is from.

    Args:
        document: the report.
        folder: where the files will lie, for the paths of run folders.

    Returns:
        Name of the table -> CSV.
    """
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
    """A median with an interval becomes three columns."""
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
    """A spreadsheet would take a text that begins so for a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def save_pictures(document: Document, prefix: Path) -> list[Path]:
    """Draw every figure to a PNG file.

    Args:
        document: the report.
        prefix: folder and beginning of the files' names.

    Returns:
        The files.
    """
    figures = [block for _, block in document.blocks() if isinstance(block, Figure)]
    colour = colours(figures)
    paths = [prefix.with_name(f"{prefix.name}-{figure.name}.png") for figure in figures]
    for figure, path in zip(figures, paths, strict=True):
        write_atomic(path, _picture(figure, colour))
    return paths


def _picture(figure: Figure, colour: Mapping[str, str]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context({"text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a sign that the font lacks is drawn as a box
        canvas = Canvas(figsize=(6.4, 4.8), layout="constrained")
        axes = canvas.subplots()
        for line in figure.lines:
            _draw(axes, line, colour[line.group])
        axes.set(title=_literal(figure.title), xlabel=_literal(figure.x_title), ylabel=_literal(figure.y_title))
        if figure.x_log:
            axes.set_xscale("log")
        if figure.y_log and any((line.y > 0).any() for line in figure.lines):
            axes.set_yscale("log")
        axes.grid(color=GRID)
        named = [line for line in figure.lines if line.named]
        if named:
            axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(2, len(named)))
        file = io.BytesIO()
        canvas.savefig(file, format="png", dpi=120, metadata={"Software": None})
        return file.getvalue()


def _literal(text: str, longest: int = LONGEST_TITLE) -> str:
    """Text without formulas in it, short enough for a picture."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def _draw(axes, line: Line, colour: str) -> None:
    label = f"\u2009{_literal(line.label, LONGEST_LABEL)}" if line.named else "_nolegend_"  # a leading _ would hide it
    if line.kind in ("points", "cross"):
        marker, size = {"points": ("o", 4), "cross": ("x", 8)}[line.kind]
        axes.plot(line.x, line.y, marker, color=colour, markersize=size, label=label)
        return
    style = {"lw": 0.7, "alpha": 0.35} if line.kind == "seed" else {"lw": 2.0}
    if line.kind != "seed" and len(line.x) < 12:
        style |= {"marker": "o", "markersize": 3}
    axes.plot(line.x, line.y, color=colour, label=label, **style)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, lw=0)
