"""The code blocks of a Markdown page, and how they are run.

CONTRIBUTING.md says which blocks are run, written to files, checked or left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

FENCE = re.compile(r"(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*) *(?P<options>.*)")
TITLE = re.compile(r'title="([^"]+)"')
MARKER = re.compile(r" *<!-- (run|not run: .+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file.
        line: of its first line of content, from 1.
        language: after the fence, such as "python".
        title: the file it is, or None.
        marker: "run", "not run: REASON" or None.
        after: the language of the block before, if nothing stands between the two but blank lines.
        code: its content, without the fence's indentation.
    """

    page: Path
    line: int
    language: str
    title: str | None
    marker: str | None
    after: str | None
    code: str

    @property
    def reason(self) -> str | None:
        """Why the block is not run, or None."""
        return self.marker.removeprefix("not run: ") if self.marker and self.marker != "run" else None

    def __str__(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text().splitlines()
    number, marker, after = 0, None, None
    while number < len(lines):
        opening = FENCE.fullmatch(lines[number])
        if opening is None:
            if lines[number].strip():
                found = MARKER.fullmatch(lines[number])
                marker, after = (found[1] if found else None), None
            number += 1
            continue
        closing = re.compile(rf" *{opening['fence'][0]}{{{len(opening['fence'])},}} *")
        first = number + 1
        end = next((i for i in range(first, len(lines)) if closing.fullmatch(lines[i])), None)
        if end is None:
            raise ValueError(f"{page}:{first}: the block is never closed")
        title = TITLE.search(opening["options"])
        indent = len(opening["indent"])
        code = "".join(line[indent:] + "\n" for line in lines[first:end])
        yield Block(page, first + 1, opening["language"], title and title[1], marker, after, code)
        number, marker, after = end + 1, None, opening["language"]
