"""A figure with groups of bars, for categories without an order: nets or targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Figure
from sibp.report.styles import GRID, KNOWN, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_IN_A_ROW = 5  # largest number of groups in a row whose names fit below them


@dataclass(frozen=True)
class Bars(Figure):
    """Bars side by side in groups, with their spread.

    Attributes:
        places: names below the groups of bars.
        bars: name in the legend -> height in each group; None or a non-finite height leaves a gap.
        marks: name of bars -> a line across each, such as a target; None: no line.
    """

    places: Sequence[str] = ()
    bars: Mapping[str, Sequence[Estimate | None]] = field(default_factory=dict)
    marks: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


def save_bars(figure: Bars, path: Path) -> None:
    """Draw bars to a PNG file.

    Args:
        figure: the bars.
        path: the file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    rows = max(1, -(-len(figure.places) // _IN_A_ROW))
    across = -(-len(figure.places) // rows)
    named = styles(_method(name) for name in figure.bars)
    with rc_context({"text.usetex": False}):
        canvas = Canvas(figsize=(max(6.4, 1.9 * across), 4.8 * rows), layout="constrained")
        canvas.suptitle(figure.title)
        panels = canvas.subplots(rows, squeeze=False).flat
        for row, axes in enumerate(panels):
            places = range(row * across, min((row + 1) * across, len(figure.places)))
            for index, name in enumerate(figure.bars):
                _draw(axes, figure, name, index, places, named[_method(name)].colour)
            axes.set(xlabel=figure.x_title, ylabel=figure.y_title)
            axes.set_xlim(-0.5, across - 0.5)
            axes.set_xticks(range(len(places)), [figure.places[place] for place in places], fontsize="small")
            axes.set_axisbelow(True)
            axes.grid(axis="y", color=GRID)
        entries = panels[0].get_legend_handles_labels()
        canvas.legend(*entries, loc="outside lower center", ncols=len(figure.bars), fontsize="small")
        canvas.savefig(path, dpi=110, metadata={"Software": None})


def _draw(axes: "Axes", figure: Bars, name: str, index: int, places: range, colour: str) -> None:
    """One method's bars in a row of groups."""
    width = 0.8 / max(1, len(figure.bars))
    heights = {place: figure.bars[name][place] for place in places}
    found = {place: e for place, e in heights.items() if e is not None and np.isfinite(e.median)}
    x = np.array([place - places.start for place in found]) + (index - (len(figure.bars) - 1) / 2) * width
    middle, spread = [e.median for e in found.values()], np.array([_spread(e) for e in found.values()])
    axes.bar(x, middle, width, color=colour, label=name)
    axes.errorbar(x, middle, yerr=spread.reshape(-1, 2).T, fmt="none", ecolor="#444444")
    for centre, place in zip(x, found, strict=True):
        bound = figure.marks[name][place] if name in figure.marks else None
        if bound is not None:
            axes.plot([centre - width / 2, centre + width / 2], [bound, bound], color="black", lw=2.5)


def _method(name: str) -> str:
    """The name of a bar's method in other pictures; a bare solver is a solver of SIBP."""
    return f"sibp {name}" if f"sibp {name}" in KNOWN else name


def _spread(estimate: Estimate) -> tuple[float, float]:
    """Lengths of the two halves of the error bar; 0 towards an infinite bound."""
    low, high = estimate.low, estimate.high
    below = estimate.median - low if low is not None else 0.0
    above = high - estimate.median if high is not None and np.isfinite(high) else 0.0
    return max(0.0, below), max(0.0, above)
