"""Matplotlib settings for small, plain, reproducible SVG files."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from sibp.report.pictures import POINTS, with_views

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sibp",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#1f2933",
    "legend.frameon": False,
    "legend.framealpha": 1.0,
    "legend.edgecolor": "white",
    "lines.linewidth": 1.8,
    "path.simplify": True,
}


def three_digits(values: Iterable[float]) -> list[float]:
    """Rounded to three digits: processors differ in the last digits of a training run."""
    return [float(f"{value:.3g}") for value in values]


class Plot:
    """A figure and, once its block has ended, its SVG text."""

    def __init__(self, width: float, height: float) -> None:
        """An empty figure, in inches."""
        self.figure = Figure(figsize=(width, height), dpi=POINTS, layout="constrained", facecolor="white")
        self.svg = ""


@contextmanager
def plot(width: float, height: float) -> Iterator[Plot]:
    """A context for drawing on `.figure`; afterwards `.svg` holds the file's text.

    Args:
        width: in inches of 72 points.
        height: in inches of 72 points.
    """
    with mpl.rc_context(_STYLE):
        made = Plot(width, height)
        yield made
        file = io.BytesIO()
        made.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        made.svg = with_views(file.getvalue(), made.figure, made.figure.axes).decode()
