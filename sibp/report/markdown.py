"""The report as Markdown, without the parts that are collapsed on the web page."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sibp.report.blocks import Block, Cell, Document, Figure, Table, Text
from sibp.report.cells import cell_text, link

NUMBER = re.compile(r"(\*\*)?[−-]?[\d.∞]([^a-z]|e[+-]\d)*$|–?$")  # with or without an interval; or an empty cell
HAS_DIGIT = re.compile(r"[\d∞]")
SPECIAL = str.maketrans({c: "\\" + c for c in "\\`*_[]|#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown(document: Document, folder: Path, stem: str, drawn: str | None) -> str:
    """The report as Markdown; pictures are named STEM-NAME.DRAWN, and omitted if ``drawn`` is None."""
    parts = [f"# {_escaped(document.title)}", *([_escaped(document.summary)] if document.summary else [])]
    for section in document.sections:
        if drawn is None and section.level > 2 and any(isinstance(block, Figure) for block in section.blocks):
            continue  # its text describes the figures
        texts = [] if section.folded else [_block(block, folder, stem, drawn) for block in section.blocks]
        if found := [text for text in texts if text]:
            parts += [f"{'#' * section.level} {_escaped(section.title)}", *found]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, folder: Path, stem: str, drawn: str | None) -> str:
    if isinstance(block, Text):
        return f"**Warning:** {_escaped(block.text)}" if block.warning else _escaped(block.text)
    if isinstance(block, Figure):
        return f"![{_escaped(block.title)}]({quote(f'{stem}-{block.name}.{drawn}')})" if drawn else ""
    if isinstance(block, Table):
        rows = [[_cell(cell, folder) for cell in row] for row in block.rows]
        table = lines_of_table(list(map(_escaped, block.columns)), rows)
        return "" if block.folded else f"{_escaped(block.title)}:\n\n{table}".rstrip("\n")
    title, empty = f"{_escaped(block.title)}: row against column", ("–", None)
    methods = {method: _escaped(method) for method in block.methods}
    rows = [
        [f"**{name}**", *(_escaped(block.cells.get((method, other), empty)[0]) for other in methods)]
        for method, name in methods.items()
    ]
    return lines_of_table([title, *methods.values()], rows).rstrip("\n")


def _cell(cell: Cell, folder: Path) -> str:
    text = _escaped(cell_text(cell))
    return f"[{text}]({link(cell, folder)})" if isinstance(cell, Path) else text


def _escaped(text: str) -> str:
    return text.translate(SPECIAL)


def lines_of_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are already Markdown; numeric columns are right-aligned."""
    cells = [[row[i] for row in rows] for i in range(len(columns))]
    right = [all(map(NUMBER.match, column)) and any(map(HAS_DIGIT.search, column)) for column in cells]
    rule = ["---:" if flush else "---" for flush in right]
    return "".join("| " + " | ".join(line) + " |\n" for line in (columns, rule, *rows))
