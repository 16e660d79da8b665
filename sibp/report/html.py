"""The report as one web page that needs nothing else: no network, no other file."""

import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from sibp.report.blocks import Block, Cell, Document, Figure, Link, Section, Table, Text
from sibp.report.plotly_figures import colours, plotly_figure
from sibp.report.text import cell_text, is_number, relative

HERE = Path(__file__).parent
LONG = 48  # characters; longer texts are broken into lines
# Whatever a run folder holds, the page loads nothing from anywhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(document: Document, folder: Path) -> str:
    """Write the page.

    Args:
        document: the report.
        folder: where the page will lie, for links to run folders.

    Returns:
        HTML.
    """
    figures = [block for _, block in document.blocks() if isinstance(block, Figure)]
    colour = colours(figures)
    parts = [part for section in document.sections for part in _section(section, folder, colour)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(document.title)}</title>",
            f"<style>{(HERE / 'page.css').read_text()}</style></head><body>",
            f"<header><h1>{escape(document.title)}</h1>{_contents(document)}</header><main>",
            *parts,
            "</section></main>",
            *([f"<script>{get_plotlyjs()}</script>"] if figures else []),
            f"<script>{(HERE / 'page.js').read_text()}</script></body></html>\n",
        ]
    )


def _contents(document: Document) -> str:
    parts = [section for section in document.sections if section.level == 2]
    items = [f'<li><a href="#{_anchor(i)}">{escape(part.title)}</a></li>' for i, part in enumerate(parts)]
    return f"<nav><ul>{''.join(items)}</ul></nav>"


def _anchor(position: int) -> str:
    return f"part-{position}"


def _section(section: Section, folder: Path, colour: Mapping[str, str]) -> list[str]:
    blocks = [_block(block, folder, colour) for block in section.blocks]
    figures = [i for i, block in enumerate(section.blocks) if isinstance(block, Figure)]
    if figures:  # figures of a section stand together
        first, last = figures[0], figures[-1] + 1
        blocks[first:last] = ['<div class="figures">', *blocks[first:last], "</div>"]
    heading = f"<h{section.level}>{escape(section.title)}</h{section.level}>"
    start, end = (["<details><summary>", heading, "</summary>"], ["</details>"]) if section.folded else ([heading], [])
    return [*(["</section><section>"] if section.level == 2 else []), *start, *blocks, *end]


def _block(block: Block, folder: Path, colour: Mapping[str, str]) -> str:
    if isinstance(block, Text):
        return f'<p class="warning">⚠ {escape(block.text)}</p>' if block.warning else f"<p>{escape(block.text)}</p>"
    if isinstance(block, Table):
        return _table(block, folder)
    data = json.dumps(plotly_figure(block, colour), allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    title = escape(block.title)
    return (
        f'<figure><figcaption>{title}</figcaption><div class="plot" role="img" aria-label="{title}"></div>'
        f'<script type="application/json">{data}</script></figure>'
    )


def _table(table: Table, folder: Path) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(cell, folder) for cell in row)}</tr>" for row in table.rows)
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    if table.folded:
        return f"<details><summary>{escape(table.title)}</summary>{body}</details>"
    return f'<p class="title">{escape(table.title)}</p>{body}'


def _cell(cell: Cell, folder: Path) -> str:
    text = escape(cell_text(cell))
    if isinstance(cell, Link):
        return f'<td><a href="{link(cell.path, folder)}">{text}</a></td>'
    kind = "number" if is_number(cell) else "long" if len(text) > LONG else ""
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def link(path: Path, folder: Path) -> str:
    """A link to a folder.

    Args:
        path: the folder.
        folder: where the link stands.

    Returns:
        A relative address in which nothing is left to interpret.
    """
    return quote(os.fsencode(relative(path, folder)), safe="/")
