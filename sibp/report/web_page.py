"""The report as one self-contained, offline web page."""

import json
import math
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from sibp.analysis.performance_profiles import LIMIT
from sibp.analysis.scoring import MIN_SEEDS
from sibp.analysis.statistics import INTERVAL_RULE, Estimate
from sibp.report.blocks import Block, Cell, Document, Figure, Line, Link, Section
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
    return (
        _environment()
        .get_template("page.html")
        .render(
            document=document,
            parts=_parts(document),
            policy=Markup(POLICY),
            style=Markup((HERE / "page.css").read_text()),
            scripts=[Markup(path.read_text()) for path in scripts],
            styles=_json({name: vars(style) for name, style in drawn.items()}),
            cell=lambda cell: _cell(cell, folder),
            min_seeds=MIN_SEEDS,
            limit=f"{LIMIT:g}",
            interval_rule=INTERVAL_RULE,
        )
    )


def _environment() -> Environment:
    environment = templates(HERE, escape=True)
    environment.filters |= {"groups": _groups, "runs_of": _runs_of, "word": cell_text}
    environment.filters["data"] = lambda figure: _json(
        vars(figure) | {"lines": [_line(line, figure) for line in figure.lines]}
    )
    return environment


def _json(value: Any) -> Markup:
    """JSON with the characters escaped that could end the surrounding HTML element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _parts(document: Document) -> list[list[Section]]:
    """The sections, grouped into parts; a section of level 2 begins a part."""
    parts: list[list[Section]] = []
    for section in document.sections:
        if section.level == 2 or not parts:
            parts.append([])
        parts[-1].append(section)
    return parts


def _groups(sections: list[Section]) -> list[str]:
    """The methods in a part's curves, each of which gets a button."""
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    return list(dict.fromkeys(group for figure in figures if figure.curves for group in figure.groups))


def _runs_of(blocks: list[Block]) -> list[tuple[str, list[Block]]]:
    """Consecutive blocks of one kind, grouped as (``curves`` or the name of the class, blocks)."""

    def kind(block: Block) -> str:
        return "curves" if isinstance(block, Figure) and block.curves else type(block).__name__

    return [(name, list(group)) for name, group in groupby(blocks, kind)]


def _cell(cell: Cell, folder: Path) -> dict[str, str | None]:
    """A cell's text, CSS class, link, and numeric value for sorting and export."""
    kind = "number" if is_number(cell) else "long" if len(cell_text(cell)) > LONG else ""
    value = cell.median if isinstance(cell, Estimate) else cell if isinstance(cell, int | float) else None
    return {
        "text": cell_text(cell),
        "kind": kind,
        "href": link(cell.path, folder) if isinstance(cell, Link) else None,
        "value": None if value is None else repr(value),
    }


def _line(line: Line, figure: Figure) -> dict[str, Any]:
    """A line as data that JSON can represent."""
    known = {title: values for title, values in line.also.items() if not np.isnan(values).all()}
    found: dict[str, Any] = {
        "label": line.label,
        "group": line.group,
        "detail": line.detail,
        "kind": line.kind,
        "x": {title: _numbers(values) for title, values in {figure.x_title: line.x, **known}.items()},
        "y": _numbers(line.y),
    }
    if line.low is not None and line.high is not None:
        found |= {"low": _numbers(line.low), "high": _numbers(line.high)}
    if line.muted:
        found["muted"] = True
    return found | ({"texts": list(line.texts)} if line.texts else {})


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Six significant digits; None (a gap) for non-finite values."""
    return [_short(value) if math.isfinite(value) else None for value in values.tolist()]


def _short(value: float) -> float | int:
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
