"""A figure as data for the page's script, which draws it with plotly."""

import math
from typing import Any

import numpy as np

from sibp.report.blocks import Figure, Line


def figure_data(figure: Figure) -> dict[str, Any]:
    """The figure as plain JSON-serialisable data."""
    return {
        "name": figure.name,
        "title": figure.title,
        "xTitle": figure.x_title,
        "yTitle": figure.y_title,
        "xLog": figure.x_log,
        "yLog": figure.y_log,
        "rows": list(figure.rows),
        "curves": figure.curves,
        "lines": [_line(line, figure) for line in figure.lines],
    }


def _line(line: Line, figure: Figure) -> dict[str, Any]:
    known = {title: values for title, values in line.also.items() if not np.isnan(values).all()}
    found: dict[str, Any] = {
        "label": line.label,
        "group": line.group,
        "detail": line.detail,
        "kind": line.kind,
        "x": {title: _numbers(values) for title, values in {figure.x_title: line.x, **known}.items()},
        "y": _numbers(line.y),
    }
    if line.low is not None and line.high is not None:
        found |= {"low": _numbers(line.low), "high": _numbers(line.high)}
    if line.muted:
        found["muted"] = True
    return found | ({"texts": list(line.texts)} if line.texts else {})


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Six significant digits; None (a gap) where there is nothing to draw."""
    return [_short(value) if math.isfinite(value) else None for value in values.tolist()]


def _short(value: float) -> float | int:
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
