"""Runs the Python blocks of a page of documentation, top to bottom, in one namespace."""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

_BLOCK = re.compile(
    r"^(?P<indent> *)```python(?: +title=\"(?P<title>[^\"]+)\")? *\n(?P<code>.*?)^(?P=indent)``` *$"
    r"(?:\n+(?P=indent)```text *\n(?P<output>.*?)^(?P=indent)``` *$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of Python on a page.

    Attributes:
        line: number of its first line of code in the page, from 1.
        code: what runs.
        title: the file it is an excerpt of, from ```python title="..."; None for the page's own code.
        output: the ```text block that follows, which is what it prints; "" if there is none.
    """

    line: int
    code: str
    title: str | None
    output: str


def blocks(page: Path) -> list[Block]:
    """The page's Python blocks, in order; those inside an admonition too.

    Args:
        page: a Markdown file.
    """
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            line=text.count("\n", 0, match.start("code")) + 1,
            code=dedent(match["code"]),
            title=match["title"],
            output=dedent(match["output"] or ""),
        )
        for match in _BLOCK.finditer(text)
    ]


def run(page: Path) -> tuple[dict[str, Any], list[tuple[Block, str]]]:
    """Runs a page.

    Args:
        page: a Markdown file.

    Returns:
        The names that its blocks defined, and every block with what it printed.

    Raises:
        Exception: as a block does; the traceback names the line of the page.
    """
    namespace: dict[str, Any] = {"__name__": page.stem}
    printed = []
    for block in blocks(page):
        # Leading empty lines make the line numbers those of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, namespace)
        printed.append((block, out.getvalue()))
    return namespace, printed
