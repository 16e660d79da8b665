"""Small SVG drawings: boxes, circles, arrows and text with subscripts, on a white card that suits any theme."""

import math
import re
from xml.sax.saxutils import escape

INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"
FORWARD, BACKWARD, NEW = "#0072b2", "#c44e00", "#00805a"  # distinct for the colour-blind, too
FORWARD_PALE, BACKWARD_PALE, NEW_PALE = "#e0f0fa", "#fdebdc", "#dff3ea"

_FONT = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"
_SCRIPT = re.compile(r"([_^])\{?((?<=\{)[^}]*(?=\})|\w)\}?")


class Drawing:
    """An SVG under construction; lengths are in pixels, y grows downwards."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Starts with an empty card.

        Args:
            width: of the card.
            height: of the card.
            title: what the picture shows, for screen readers.
        """
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' font-family="{_FONT}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([*self._lines, "</svg>\n"])

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        stroke: str = INK,
        radius: float = 0,
    ) -> None:
        """A box with its upper left corner at (x, y)."""
        self._lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
            f' fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
        )

    def circle(self, x: float, y: float, radius: float, *, fill: str = "#ffffff", stroke: str = INK) -> None:
        """A circle around (x, y)."""
        self._lines.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
        )

    def path(
        self, points: list[tuple[float, float]], *, color: str = INK, width: float = 1.5, dashed: bool = False
    ) -> None:
        """Straight lines through points."""
        d = "M" + " L".join(f"{x:.5g} {y:.5g}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._lines.append(f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashes}/>')

    def arrow(self, *points: tuple[float, float], color: str = INK, width: float = 1.8, dashed: bool = False) -> None:
        """Straight lines through points, with an arrow head at the last."""
        (x0, y0), (x1, y1) = points[-2:]
        angle = math.atan2(y1 - y0, x1 - x0)
        size = 4 + 2.5 * width
        back = (x1 - 0.8 * size * math.cos(angle), y1 - 0.8 * size * math.sin(angle))
        self.path([*points[:-1], back], color=color, width=width, dashed=dashed)
        wings = [(x1 - size * math.cos(angle + turn), y1 - size * math.sin(angle + turn)) for turn in (0.42, -0.42)]
        head = " ".join(f"{x:.5g},{y:.5g}" for x, y in [(x1, y1), *wings])
        self._lines.append(f'<polygon points="{head}" fill="{color}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 14,
        color: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        italic: bool = False,
    ) -> None:
        """A line of text with its anchor at x, base line at y; `_2`, `_{new}` and `^T` are sub- and superscripts."""
        style = (' font-weight="bold"' if bold else "") + (' font-style="italic"' if italic else "")
        chunks = _SCRIPT.split(words)  # text, mark, script, text, mark, script, ..., text
        parts, base = [escape(chunks[0])], 0.0
        for mark, small, rest in zip(chunks[1::3], chunks[2::3], chunks[3::3], strict=True):
            at = round((0.3 if mark == "_" else -0.4) * size, 1)
            parts.append(f'<tspan dy="{at - base:g}" font-size="{0.72 * size:.1f}">{escape(small)}</tspan>')
            parts.append(f'<tspan dy="{-at:g}">{escape(rest)}</tspan>' if rest else "")
            base = 0.0 if rest else at
        self._lines.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}"{style}>'
            f"{''.join(parts)}</text>"
        )

    def matrix(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        name: str,
        shape: str = "",
        *,
        color: str = INK,
        fill: str = "#ffffff",
    ) -> None:
        """A box that stands for a matrix, its name inside, its shape below."""
        self.rect(x, y, width, height, fill=fill, stroke=color)
        self.text(x + width / 2, y + height / 2 + 5, name, color=color, italic=True)
        if shape:
            self.text(x + width / 2, y + height + 16, shape, size=11, color=GREY)
