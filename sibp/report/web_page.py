"""The report as one self-contained, offline web page."""

import json
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from sibp.analysis.performance_profiles import LIMIT
from sibp.analysis.scoring import MIN_SEEDS
from sibp.analysis.statistics import INTERVAL_RULE, Estimate
from sibp.report.blocks import Block, Cell, Document, Figure, Line, Section
from sibp.report.cells import cell_text, is_number, link
from sibp.report.styles import styles
from sibp.report.templates import templates

HERE = Path(__file__).parent
LONG = 48  # characters; longer texts are broken into lines
# The page loads no external resource, whatever a run folder contains.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(document: Document, folder: Path) -> str:
    """The report as HTML; links to run folders are relative to ``folder``, where the page will be stored."""
    figures = document.figures()
    drawn = styles(group for figure in figures for group in figure.groups)
    # The plotting library comes before the page's script, and is omitted if there are no figures.
    scripts = [*([HERE / "plotly" / "plotly-basic.min.js"] if figures else []), HERE / "page.js"]
    template = templates(HERE, escape=True).get_template("page.html")
    return template.render(
        document=document,
        policy=Markup(POLICY),
        style=Markup((HERE / "page.css").read_text()),
        scripts=[Markup(path.read_text()) for path in scripts],
        styles=_json({name: vars(style) for name, style in drawn.items()}),
        cell=lambda cell: _cell(cell, folder),
        cell_text=cell_text,
        data=lambda figure: _json(vars(figure) | {"lines": [_line(line, figure) for line in figure.lines]}),
        groups_of=_groups_of,
        runs_of=lambda blocks: [(kind, list(run)) for kind, run in groupby(blocks, _kind)],
        min_seeds=MIN_SEEDS,
        limit=f"{LIMIT:g}",
        interval_rule=INTERVAL_RULE,
    )


def _json(value: Any) -> Markup:
    """JSON with the characters escaped that could end the surrounding HTML element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _groups_of(part: Sequence[Section]) -> list[str]:
    """The methods in a part's curves, each of which gets a button."""
    figures = [block for section in part for block in section.blocks if isinstance(block, Figure) and block.curves]
    return list(dict.fromkeys(group for figure in figures for group in figure.groups))


def _kind(block: Block) -> str:
    return "curves" if isinstance(block, Figure) and block.curves else type(block).__name__


def _cell(cell: Cell, folder: Path) -> dict[str, str | None]:
    """A cell's text, CSS class, link, and numeric value for sorting and export."""
    text, value = cell_text(cell), cell.median if isinstance(cell, Estimate) else cell
    return {
        "text": text,
        "kind": "number" if is_number(cell) else "long" if len(text) > LONG else "",
        "href": link(cell, folder) if isinstance(cell, Path) else None,
        "value": repr(value) if isinstance(value, int | float) else None,
    }


def _line(line: Line, figure: Figure) -> dict[str, Any]:
    """A line as data that JSON can represent."""
    known = {title: places for title, places in line.also.items() if not np.isnan(places).all()}
    found: dict[str, Any] = {key: getattr(line, key) for key in ("label", "group", "detail", "kind")}
    found["x"] = {title: _numbers(places) for title, places in {figure.x_title: line.x, **known}.items()}
    for key in ("y", "low", "high"):
        if (values := getattr(line, key)) is not None:
            found[key] = _numbers(values)
    for key in ("muted", "texts"):
        if value := getattr(line, key):
            found[key] = value
    return found


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Six significant digits, whole numbers without a point; None (a gap) for non-finite values."""
    short = [float(f"{value:.6g}") for value in values.tolist()]
    whole = [int(value) if value.is_integer() and abs(value) < 1e15 else value for value in short]
    return [value if math.isfinite(value) else None for value in whole]
