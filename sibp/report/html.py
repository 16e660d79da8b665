"""The report as one web page that needs nothing else: no network, no other file."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Block, Cell, Document, Figure, Link, Section
from sibp.report.figures import figure_data
from sibp.report.styles import styles
from sibp.report.text import cell_text, is_number, relative

HERE = Path(__file__).parent
LONG = 48  # characters; longer texts are broken into lines
# Whatever a run folder holds, the page loads nothing from anywhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(document: Document, folder: Path) -> str:
    """The report as HTML; ``folder`` is where the page will be stored, so that links to run folders are relative."""
    figures = document.figures()
    drawn = styles(group for figure in figures for group in figure.groups)
    # The drawing library runs before the page's own script, and only where there is something to draw.
    scripts = [*([HERE / "plotly" / "plotly-basic.min.js"] if figures else []), HERE / "page.js"]
    return (
        _templates()
        .get_template("page.html")
        .render(
            document=document,
            parts=_parts(document),
            policy=Markup(POLICY),
            style=Markup((HERE / "page.css").read_text()),
            scripts=[Markup(path.read_text()) for path in scripts],
            styles=_json({name: vars(style) for name, style in drawn.items()}),
            cell=lambda cell: _cell(cell, folder),
        )
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["runs_of"] = _runs_of
    environment.filters["data"] = lambda figure: _json(figure_data(figure))
    environment.filters["groups"] = _groups
    environment.filters["word"] = cell_text
    return environment


def _json(value: Any) -> Markup:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _parts(document: Document) -> list[list[Section]]:
    """The sections, each part (level 2) with what belongs to it."""
    parts: list[list[Section]] = []
    for section in document.sections:
        if section.level == 2 or not parts:
            parts.append([])
        parts[-1].append(section)
    return parts


def _groups(sections: list[Section]) -> list[str]:
    """The methods in a part's curves, which its switches show and hide."""
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    found = [group for figure in figures if figure.curves for group in figure.groups]
    return list(dict.fromkeys(found))


def _runs_of(blocks: list[Block]) -> list[tuple[str, list[Block]]]:
    """Consecutive blocks of one kind, grouped as (``curves`` or the name of the class, blocks)."""
    found: list[tuple[str, list[Block]]] = []
    for block in blocks:
        kind = "curves" if isinstance(block, Figure) and block.curves else type(block).__name__
        if found and found[-1][0] == kind:
            found[-1][1].append(block)
        else:
            found.append((kind, [block]))
    return found


def _cell(cell: Cell, folder: Path) -> dict[str, str | None]:
    """Text, class, link and the value to sort and export by."""
    kind = "number" if is_number(cell) else "long" if len(cell_text(cell)) > LONG else ""
    value = cell.median if isinstance(cell, Estimate) else cell if isinstance(cell, int | float) else None
    return {
        "text": cell_text(cell),
        "kind": kind,
        "href": link(cell.path, folder) if isinstance(cell, Link) else None,
        "value": None if value is None else repr(value),
    }


def link(path: Path, folder: Path) -> str:
    """A percent-encoded relative link to a run folder."""
    return quote(os.fsencode(relative(path, folder)), safe="/")
