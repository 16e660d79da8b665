"""``scaling``: how the cost of a step grows with batch size, width, depth and iterations of CG."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sibp.analysis.statistics import Estimate
from sibp.bench.counting import layers_of, operations, step_work
from sibp.bench.nets import Case, choose_cases
from sibp.bench.record import new_record
from sibp.bench.timing import device_clock, interleave, quartiles
from sibp.bench.workers import PROXBP, SGD, Worker
from sibp.report.blocks import Cell, Figure, Line, Section, Table, Text
from sibp.runs.errors import UserError

METHODS = (SGD, "exact", "cg:5", PROXBP)
FACTORS = (0.25, 0.5, 1, 2, 4)  # of the net's own batch and width
DEPTHS = (1, 2, 4, 8)  # hidden layers
ROUNDS = (1, 2, 4, 8, 16)
_Curve = tuple[list[float], list[Estimate], list[float]]
"""Sizes, milliseconds per step, operations."""
NOTE = (
    "An exponent is the slope of a least-squares line through the logarithms of cost and size. The last column is the "
    "exponent of the operations, counted by formula over the same sizes, with terms of lower order. Small steps cost "
    "more than their operations, so measured exponents tend to be smaller."
)


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Time steps while one size varies and the others are fixed.

    Args:
        args: net (one with a single hidden layer), batch, seconds for each size, device, dtype.
        arguments: of the command line.

    Returns:
        The record.

    Raises:
        UserError: for a net without a single hidden layer.
    """
    cases = choose_cases(args.net or ["784-500-10"], args.batch)
    if len(cases) != 1 or len(cases[0].widths) != 3:
        raise UserError("scaling varies one net with one hidden layer and one batch size: give --net 784-500-10.")
    record = new_record("scaling", arguments, args.device)
    record |= {"dtype": args.dtype, "net": cases[0].net, "batch": cases[0].batch, "sweeps": {}}
    for axis, points in plan(cases[0]).items():
        record["sweeps"][axis] = [_measure_point(point, args) for point in points]
    return record


def plan(base: Case) -> dict[str, list[tuple[float, Case, tuple[str, ...]]]]:
    """The points to measure.

    Args:
        base: the net whose sizes are varied.

    Returns:
        For each axis its points: size, net and methods.
    """
    n, width, classes = base.widths
    batches = [max(1, round(base.batch * factor)) for factor in FACTORS]
    widths = [max(1, round(width * factor)) for factor in FACTORS]
    return {
        "batch": [(batch, Case(base.net, batch), METHODS) for batch in batches],
        "width": [(m, Case(f"{n}-{m}-{classes}", base.batch), METHODS) for m in widths],
        "depth": [(d, Case("-".join(map(str, [n, *[width] * d, classes])), base.batch), METHODS) for d in DEPTHS],
        "rounds": [(k, base, (f"cg:{k}",)) for k in ROUNDS],
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent a of cost = c size^a, by least squares in logarithms.

    Args:
        sizes: at least two different ones, > 0.
        costs: > 0.

    Returns:
        a.
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables and pictures.

    Args:
        record: from `measure`.

    Returns:
        Exponents, then one table and one picture per axis.
    """
    rows: list[list[Cell]] = []
    parts: list[Section] = []
    for axis, points in record["sweeps"].items():
        curves = _curves(axis, points)
        for method, (sizes, times, counted) in curves.items():
            middle = [time.median for time in times]
            span = f"{min(sizes):g} to {max(sizes):g}"
            rows.append([axis, span, method, exponent(sizes, middle), exponent(sizes, counted)])
        parts.append(Section(f"Against {axis}", [_table(axis, points), _figure(axis, curves)]))
    columns = ["varied", "over", "method", "exponent of the time", "of the operations"]
    title = f"How a step's cost grows: {Case(record['net'], record['batch']).title}"
    return [Section(title, [Text(NOTE), Table("exponents", columns, rows, "Exponents")]), *parts]


def _table(axis: str, points: Sequence[Mapping[str, Any]]) -> Table:
    names = list(points[0]["seconds_per_step"]) if axis != "rounds" else ["cg:K"]
    rows = [
        [point["size"], *(quartiles([1e3 * v for v in samples]) for samples in point["seconds_per_step"].values())]
        for point in points
    ]
    return Table(axis, [axis, *names], rows, "Milliseconds a step, medians with quartiles")


def _figure(axis: str, curves: Mapping[str, _Curve]) -> Figure:
    lines = []
    for method, (sizes, times, _) in curves.items():
        low, middle, high = (np.array([getattr(time, key) for time in times]) for key in ("low", "median", "high"))
        lines.append(Line(method, method, np.array(sizes), middle, low, high, named=True))
    return Figure(axis, f"Time of a step against {axis}", axis, "ms a step", lines, x_log=True, y_log=True)


def _measure_point(point: tuple[float, Case, tuple[str, ...]], args: argparse.Namespace) -> dict[str, Any]:
    size, case, methods = point
    layers = layers_of(case.model(), case.shape, case.batch)
    workers = {method: Worker(case, method, args.device, args.dtype) for method in methods}
    samples = interleave(workers, args.seconds, device_clock(args.device))
    counted = {method: operations(step_work(method, layers)) for method in methods}
    return {"size": size, "seconds_per_step": samples.seconds, "operations": counted}


def _curves(axis: str, points: Sequence[Mapping[str, Any]]) -> dict[str, _Curve]:
    """One curve per method; CG is one method with any number of iterations."""
    curves: dict[str, _Curve] = {}
    for point in points:
        for method, samples in point["seconds_per_step"].items():
            sizes, times, counted = curves.setdefault("cg:K" if axis == "rounds" else method, ([], [], []))
            sizes.append(point["size"])
            times.append(quartiles([1e3 * value for value in samples]))
            counted.append(point["operations"][method])
    return curves
