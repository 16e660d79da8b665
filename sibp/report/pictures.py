"""Figures as PNG and SVG, drawn by matplotlib; equal figures give equal bytes."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sibp.report.blocks import Document, Figure, Line
from sibp.report.curves import SECONDS
from sibp.report.styles import DASHES, GRID, MARKED, MARKS, MUTED, Style, styles
from sibp.runs.folder import write_atomic

LONGEST_TITLE, LONGEST_LABEL, LONGEST_ROW = 60, 48, 24  # characters
POINTS = 72  # an inch, in the units of SVG
MARGIN = 2  # points around a view
PANEL_CHARACTERS = 60  # characters of the legend that fit below one panel
WIDEST = 11.5  # inches; three panels remain legible on a page
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
SETTINGS: dict[Any, Any] = {"svg.hashsalt": "sibp", "font.size": 9, "text.usetex": False, "axes.axisbelow": True}
Panel = tuple[Figure, str]  # a figure and the title of the horizontal axis to draw


def save_pictures(document: Document, prefix: Path, form: str) -> list[Path]:
    """Draw every figure to PREFIX-NAME.png or .svg; returns the files."""
    paths = {prefix.with_name(f"{prefix.name}-{figure.name}.{form}"): figure for figure in document.figures()}
    drawn = styles(group for figure in paths.values() for group in figure.groups)
    for path, figure in paths.items():
        write_atomic(path, picture(panels_of(figure), form, drawn))
    return list(paths)


def panels_of(figure: Figure) -> list[Panel]:
    """A figure over its own axis, and over training seconds where it has them."""
    timed = any(SECONDS in line.also for line in figure.lines)
    return [(figure, figure.x_title), *([(figure, SECONDS)] if timed else [])]


def picture(
    panels: Sequence[Panel], form: str, drawn: Mapping[str, Style] | None = None, columns: int = 2, seeds: bool = False
) -> bytes:
    """Draw panels as PNG or SVG with one legend below; ``seeds`` also draws the line of every seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    drawn = drawn or styles(group for figure, _ in panels for group in figure.groups)
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a missing glyph is drawn as a box
        height = max(3.4, *(0.2 * len(figure.rows) + 0.8 for figure, _ in panels))
        size = min(4.8 * across + 0.4, WIDEST), height * down + 0.6
        canvas = Canvas(figsize=size, dpi=POINTS, layout="constrained")
        vertical = {figure.y_title for figure, _ in panels}
        grid = list(canvas.subplots(down, across, squeeze=False, sharey=len(vertical) == 1 and vertical != {""}).flat)
        labels: dict[str, Any] = {}
        for axes, (figure, axis) in zip(grid, panels, strict=False):
            _panel(axes, figure, axis, drawn, seeds)
            axes.tick_params(labelleft=True)  # also beside a panel of the same axis: a narrow page shows each alone
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                labels.setdefault(label, handle)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        if labels:
            fit = max(1, PANEL_CHARACTERS * across // max(map(len, labels)))
            place = {"loc": "outside lower center", "ncols": min(fit, 4), "frameon": False}
            canvas.legend(list(labels.values()), list(labels), **place)
        file = io.BytesIO()
        canvas.savefig(file, format=form, dpi=130, metadata=METADATA[form])
        if form != "svg":
            return file.getvalue()
        return _with_short_numbers(with_views(file.getvalue(), canvas, grid[: len(panels)]))


def with_views(svg: bytes, canvas: Any, panels: Sequence[Any]) -> bytes:
    """The SVG with a ``<view>`` of every panel and every column of the legend, which narrow pages show one by one.

    Args:
        svg: the canvas as saved.
        canvas: the figure; its dpi is `POINTS`.
        panels: its axes. Their views are named ``panel-1``, ``panel-2``, ...; the legend's follow the first panel's.
    """
    from matplotlib.transforms import Bbox

    first, *others = [(f"panel-{i}", [axes.get_tightbbox()]) for i, axes in enumerate(panels, 1)]
    columns: dict[float, list[Bbox]] = {}
    for legend in canvas.legends:
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            box = text.get_window_extent()
            columns.setdefault(round(box.x0), []).extend((box, handle.get_window_extent()))
    keys = [(f"legend-{i}", boxes) for i, (_, boxes) in enumerate(sorted(columns.items()), 1)]
    views, height = "", canvas.get_figheight() * POINTS
    for name, boxes in (first, *keys, *others):
        left, low, right, top = Bbox.union(boxes).padded(MARGIN).extents
        views += f'<view id="{name}" viewBox="{left:.0f} {height - top:.0f} {right - left:.0f} {top - low:.0f}"/>\n'
    return svg.replace(b"</svg>", views.encode() + b"</svg>")


def _with_short_numbers(svg: bytes) -> bytes:
    """The SVG with positions in hundredths of a point: the sixth decimal depends on the processor's logarithms."""

    def rounded(position: re.Match[bytes]) -> bytes:
        return re.sub(rb"-?\d+\.\d{3,}", lambda number: b"%g" % round(float(number[0]), 2), position[0])

    return re.sub(rb'\b(?:d|x|y)="[^"]*"|translate\([^)]*\)', rounded, svg)


def _panel(axes: Any, figure: Figure, axis: str, drawn: Mapping[str, Style], seeds: bool) -> None:
    from matplotlib.ticker import LogLocator

    figure = _as_errors(figure) if figure.curves and figure.y_title.endswith("acc") else figure
    for line in figure.lines:
        if line.kind != "seed" or seeds:
            _draw(axes, line, line.x if axis == figure.x_title else line.also.get(axis), drawn[line.group])
    axes.set(title=_literal(figure.title, LONGEST_TITLE), xlabel=_literal(axis), ylabel=_literal(figure.y_title))
    if figure.x_log and any((line.x > 0).any() for line in figure.lines):
        axes.set_xscale("log")
        if figure.rows:  # a short axis: powers of ten alone would give one label, and minor labels overlap
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
    if figure.y_log and any((line.y > 0).any() for line in figure.lines):
        axes.set_yscale("log")
    if figure.rows:
        axes.set_yticks(range(len(figure.rows)), [_literal(row, LONGEST_ROW) for row in figure.rows])
        axes.set_ylim(len(figure.rows) - 0.5, -0.5)
    axes.grid(color=GRID, lw=0.6)


def _as_errors(figure: Figure) -> Figure:
    """Accuracy as 1 - accuracy on a logarithmic axis; an error of 0 is drawn at half the smallest positive error."""
    found = 1 - np.concatenate([a for line in figure.lines for a in (line.y, line.low, line.high) if a is not None])
    floor = found[found > 0].min(initial=1) / 2

    def errors(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.maximum(1 - values, floor)

    lines = [replace(each, y=errors(each.y), low=errors(each.high), high=errors(each.low)) for each in figure.lines]
    return replace(figure, y_title=f"1 − {figure.y_title}", lines=lines, y_log=True)


def _draw(axes: Any, line: Line, x: np.ndarray | None, style: Style) -> None:
    if x is None or np.isnan(x).all():
        return
    name = f"{line.label} ({line.detail})" if line.detail else line.label
    # A thin space first, since matplotlib omits labels that begin with an underscore.
    label = f"\u2009{_literal(name, LONGEST_LABEL)}" if line.named and not line.muted else "_nolegend_"
    colour, dash = (MUTED, "-") if line.muted else (style.colour, DASHES[style.dash])
    mark = MARKS[style.mark]
    if line.kind in ("points", "cross"):
        mark, size = ("x", 8) if line.kind == "cross" else (mark, 4)
        axes.plot(x, line.y, mark, color=colour, markersize=size, label=label)
    elif line.kind == "interval":
        spread = np.abs(np.array([line.low, line.high]) - x)
        axes.errorbar(x, line.y, xerr=spread, fmt=mark, color=colour, capsize=3, lw=2)
    else:
        if line.kind == "seed":
            look = {"lw": 0.7, "alpha": 0.4}
        elif line.muted:
            look = {"lw": 1.0, "zorder": 1}
        else:
            look = {"lw": 1.8, "marker": mark, "markersize": 4, "markevery": max(1, len(x) // MARKED)}
        axes.plot(x, line.y, color=colour, ls=dash, label=label, **look)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=colour, alpha=0.16, lw=0)


def _literal(text: str, longest: int = LONGEST_TITLE) -> str:
    """The text with ``$`` escaped, cut to ``longest`` characters."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")
