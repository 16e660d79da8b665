"""Figures as plotly's JSON."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sibp.report.blocks import Figure, Line

# Okabe and Ito's colours, told apart by the colour-blind too; then as many more as an arena needs.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b3a8e", "#7f7f7f", "#8c564b", "#17806d",
    "#b8860b", "#e4008b", "#4d9a26", "#a02c2c", "#1f3a93", "#7fb800", "#882255", "#44aa99", "#c9a400", "#aa4499",
    "#661100", "#6699cc", "#333333", "#ff7f50",
)  # fmt: skip
GRID = "#e3e6ea"


def colours(figures: Sequence[Figure]) -> dict[str, str]:
    """A colour for each group of lines, the same in all figures.

    Args:
        figures: all figures of a report.

    Returns:
        Group -> colour.
    """
    groups = dict.fromkeys(line.group for figure in figures for line in figure.lines)
    return {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}


def plotly_figure(figure: Figure, colour: Mapping[str, str]) -> dict[str, Any]:
    """One figure for ``Plotly.newPlot``.

    Args:
        figure: the figure.
        colour: group -> colour.

    Returns:
        ``data`` and ``layout``.
    """
    traces = [trace for line in figure.lines for trace in _traces(line, colour[line.group], figure)]
    layout = {
        "xaxis": _axis(figure.x_title, figure.x_log),
        "yaxis": _axis(figure.y_title, figure.y_log),
        "margin": {"l": 60, "r": 12, "t": 32, "b": 48},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0, "font": {"size": 12}},
        "hovermode": "closest",
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1f2933"},
    }
    return {"data": traces, "layout": layout}


def _axis(title: str, log: bool) -> dict[str, Any]:
    axis = {"title": {"text": escape(title)}, "gridcolor": GRID, "linecolor": "#9aa5b1", "zeroline": False}
    axis["automargin"] = True
    return {**axis, "type": "log", "exponentformat": "power", "nticks": 6} if log else axis


def _traces(line: Line, colour: str, figure: Figure) -> list[dict[str, Any]]:
    name = escape(line.label)
    base = {
        "type": "scatter",
        "name": name,
        "legendgroup": escape(line.group),
        "showlegend": line.named,
        "x": _numbers(line.x, figure.x_log),
        "y": _numbers(line.y, figure.y_log),
        "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        "text": [escape(text) for text in line.texts] if line.texts else name,
    }
    if line.kind in ("points", "cross"):
        symbol = {"points": "circle", "cross": "x"}[line.kind]
        size = {"points": 6, "cross": 11}[line.kind]
        return [{**base, "mode": "markers", "marker": {"color": colour, "symbol": symbol, "size": size}}]
    if line.kind == "seed":
        return [{**base, "mode": "lines", "line": {"color": colour, "width": 1}, "opacity": 0.35}]
    mode = "lines+markers" if len(line.x) < 12 else "lines"
    thick = {**base, "mode": mode, "line": {"color": colour, "width": 2.5}, "marker": {"size": 5}}
    return [*_band(line, colour, base, figure), thick]


def _band(line: Line, colour: str, base: Mapping[str, Any], figure: Figure) -> list[dict[str, Any]]:
    if line.low is None or line.high is None:
        return []
    shade = "rgba({}, {}, {}, 0.16)".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))
    hidden = {
        "type": "scatter",
        "legendgroup": base["legendgroup"],
        "showlegend": False,
        "hoverinfo": "skip",
        "mode": "lines",
        "line": {"width": 0, "color": colour},
        "x": base["x"],
    }
    lower = {**hidden, "y": _numbers(line.low, figure.y_log)}
    upper = {**hidden, "y": _numbers(line.high, figure.y_log), "fill": "tonexty", "fillcolor": shade}
    return [lower, upper]


def _numbers(values: np.ndarray, log: bool) -> list[float | None]:
    """Six significant digits; None (a gap) where there is nothing to draw."""
    return [float(f"{v:.6g}") if math.isfinite(v) and (v > 0 or not log) else None for v in values.tolist()]
