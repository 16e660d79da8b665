"""The arena's performance profiles as SVG: always the same bytes for the same kept runs."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas

from sibp.analysis.arena import REFERENCE, Standing
from sibp.report.arena_page import profiles
from sibp.report.styles import DASHES, GRID, styles

OURS = "sibp"  # what the names of semi-implicit methods begin with
SVG: Any = {"svg.hashsalt": "sibp", "font.size": 9, "text.usetex": False}


def picture(table: Sequence[Standing]) -> bytes:
    """Profiles of the steps and of the seconds to the validation target.

    Args:
        table: the standings, the best first.

    Returns:
        The picture: semi-implicit methods thick, peers thin.
    """
    figures = profiles(table)[:2]
    own = styles(each.name for each in table)
    width = {each.name: 2.4 if each.name.startswith(OURS) else 1.0 for each in table} | {REFERENCE: 1.8}
    with rc_context(SVG):
        canvas = Canvas(figsize=(9, 5.5), layout="constrained")
        for axes, figure in zip(canvas.subplots(1, 2, sharey=True), figures, strict=True):
            for line in figure.lines:
                look = {"color": own[line.group].colour, "ls": DASHES[own[line.group].dash], "lw": width[line.group]}
                axes.plot(line.x, line.y, label=line.label, **look)
            axes.set_xscale("log", base=2)
            axes.set(xlabel=figure.x_title, title=figure.title, ylim=(-0.02, 1.02))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid(color=GRID, lw=0.5)
        canvas.axes[0].set_ylabel(figures[0].y_title)
        canvas.legend(*canvas.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
