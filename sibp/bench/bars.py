"""A figure with groups of bars, for categories without an order: nets or targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Figure
from sibp.report.styles import GRID, styles


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

    with rc_context({"text.usetex": False}):
        canvas = Canvas(figsize=(max(6.4, 1.7 * len(figure.places)), 4.8), layout="constrained")
        axes = canvas.subplots()
        width, drawn = 0.8 / max(1, len(figure.bars)), styles(figure.bars)
        for index, (name, heights) in enumerate(figure.bars.items()):
            shown = [i for i, e in enumerate(heights) if e is not None and np.isfinite(e.median)]
            found = [e for e in heights if e is not None and np.isfinite(e.median)]
            x = np.array(shown) + (index - (len(figure.bars) - 1) / 2) * width
            spread = np.array([_spread(e) for e in found]).reshape(-1, 2).T
            middle = [e.median for e in found]
            axes.bar(x, middle, width, color=drawn[name].colour, label=name)
            axes.errorbar(x, middle, yerr=spread, fmt="none", ecolor="#444444")
            for place, group in zip(x, shown, strict=True):
                bound = figure.marks[name][group] if name in figure.marks else None
                if bound is not None:
                    axes.plot([place - width / 2, place + width / 2], [bound, bound], color="black", lw=2.5)
        axes.set(title=figure.title, xlabel=figure.x_title, ylabel=figure.y_title)
        axes.set_xlim(-0.5, len(figure.places) - 0.5)
        axes.set_xticks(range(len(figure.places)), figure.places, fontsize="small")
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=GRID)
        axes.legend(fontsize="small")
        canvas.savefig(path, dpi=110, metadata={"Software": None})


def _spread(estimate: Estimate) -> tuple[float, float]:
    """Lengths of the two halves of the error bar; 0 towards an infinite bound."""
    low, high = estimate.low, estimate.high
    below = estimate.median - low if low is not None else 0.0
    above = high - estimate.median if high is not None and np.isfinite(high) else 0.0
    return max(0.0, below), max(0.0, above)
