"""``roofline``: the least time that a step can take on this machine, beside what it does take."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sibp.bench.bars import Bars
from sibp.bench.counting import Layer, layers_of, operations, step_work
from sibp.bench.nets import Case, choose_cases
from sibp.bench.rates import Roof, bandwidth, product_rate
from sibp.bench.record import new_record
from sibp.bench.step import judged, measure_case, ratio_of, targets_of
from sibp.bench.timing import device_clock, quartiles
from sibp.bench.workers import METHODS, PEERS, PORTS, SGD, check_methods
from sibp.report.blocks import Cell, Section, Table, Text
from sibp.runs.errors import UserError

NOTE = (
    "Roof: each operation of a step takes at least its arithmetic at the rate of a large matrix product, or its "
    "traffic at the rate of a pass over memory of the net's size, whichever is longer; both rates were measured on the "
    "spot. What a step does is counted by the formulas in sibp/bench/counting.py. The column roof / roof is the ratio "
    "to SGD if both were that fast. Floor is the ratio if SGD takes the time it was measured to take, and the method "
    "beyond that only the roof of what it does in addition: a target below the floor cannot be met by computing the "
    "step this way. Calls: the floor with the calls of the method's many small operations added, which were timed as a "
    "step of a net of the same depth whose arithmetic takes no time (8 neurons a layer, 4 rows), less SGD's: what "
    "remains above it is lost in caches, threads and small products, and a target between the two could be met by "
    "fewer or quicker calls alone. Targets are for ratios of processor time; all other figures here are by the clock."
)
_TINY_WIDTH, _TINY_BATCH = 8, 4


def measure(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Measure the machine's rates and the methods' steps, and count what the steps do.

    Args:
        args: net, batch, methods, seconds, device, dtype.
        words: of the command line.

    Returns:
        The record.

    Raises:
        UserError: for nets or methods that are not known, or that have no formulas.
    """
    cases = choose_cases(args.net, args.batch, args.activation)
    methods = args.methods or list(METHODS)
    for method in methods:
        if method in (*PORTS, *PEERS):
            raise UserError(f"--methods {method} has no formulas here: use it with step.")
    for case in cases:
        check_methods(methods, case)
    dtype, clock = getattr(torch, args.dtype), device_clock(args.device)
    record = new_record("roofline", words, args.device)
    record |= {"dtype": args.dtype, "product_rate": product_rate(args.device, dtype, clock), "cases": []}
    for case in cases:
        layers = layers_of(case.model(), case.shape, case.batch)
        size = _numbers(layers) * dtype.itemsize
        roof = Roof(record["product_rate"], bandwidth(size, args.device, dtype, clock), dtype.itemsize)
        timed = measure_case(case, methods, args.seconds, args.device, args.dtype, with_memory=False)
        counted = {}
        for method in timed["seconds_per_step"]:
            work = step_work(method, layers)
            numbers = sum(each.numbers for each in work) * dtype.itemsize
            counted[method] = {"operations": operations(work), "bytes": numbers, "roof_seconds": roof.seconds(work)}
        calls = _calls(case, methods, args)
        record["cases"].append(
            {**timed, "size_bytes": size, "bandwidth": roof.bandwidth, "counted": counted, "calls": calls}
        )
    return record


def floor(case: Mapping[str, Any], method: str) -> float:
    """The ratio to SGD's measured time below which a method cannot come.

    Args:
        case: one of a record's.
        method: the method.

    Returns:
        1 + (the method's roof - SGD's roof) / SGD's measured seconds.
    """
    counted = case["counted"]
    more = counted[method]["roof_seconds"] - counted[SGD]["roof_seconds"]
    return 1 + more / quartiles(case["seconds_per_step"][SGD]).median


def with_calls(case: Mapping[str, Any], method: str) -> float | None:
    """The floor with the time of the method's calls.

    Args:
        case: one of a record's.
        method: the method.

    Returns:
        floor + (the method's calls - SGD's calls) / SGD's measured seconds; None if calls were not measured.
    """
    calls = case.get("calls")
    if not calls:
        return None
    more = quartiles(calls[method]).median - quartiles(calls[SGD]).median
    return floor(case, method) + more / quartiles(case["seconds_per_step"][SGD]).median


def _calls(case: Case, methods: Sequence[str], args: argparse.Namespace) -> dict[str, list[float]] | None:
    """Seconds of a step of a tiny net with as many layers, one sample a round; None for what is no MLP."""
    if not case.widths:
        return None
    tiny = Case("-".join([str(_TINY_WIDTH)] * len(case.widths)), _TINY_BATCH, case.activation)
    return measure_case(tiny, methods, args.seconds / 4, args.device, args.dtype, with_memory=False)["seconds_per_step"]


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables and a picture.

    Args:
        record: from `measure`.

    Returns:
        A table for each net and one picture.
    """
    rate = f"Matrix products: {record['product_rate'] / 1e9:.4g} GFLOP/s in {record['dtype']}."
    found = [Section("Roofline", [Text(NOTE), Text(rate)])]
    for case in record["cases"]:
        text = f"Passes over {case['size_bytes'] / 1e6:.3g} MB, the net's size: {case['bandwidth'] / 1e9:.3g} GB/s."
        title = Case.of(case).title
        found.append(Section(title, [Text(text), _table(case)]))
    return [*found, Section("All nets", [_figure(record["cases"])])]


def _numbers(layers: Sequence[Layer]) -> int:
    """Numbers in a step's tensors, roughly: weights, activations, and a gradient of each."""
    return sum(2 * a.inputs * a.neurons + 2 * a.rows * a.neurons + a.entries for a in layers)


def _table(case: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for method, counted in case["counted"].items():
        own = quartiles([1e3 * value for value in case["seconds_per_step"][method]])
        least, target = counted["roof_seconds"], targets_of(case).get(method)
        ratio, bound = ratio_of(case, method), floor(case, method)
        called, told = with_calls(case, method), judged(case, method)
        if target and max(bound, called or 0) > target:
            told[1] = f"{told[1]}, below the floor" + (" with calls" if bound <= target else "")
        work: list[Cell] = [counted["operations"] / 1e6, counted["bytes"] / 1e6, 1e3 * least, own]
        compared: list[Cell] = [least / case["counted"][SGD]["roof_seconds"], bound, called, ratio]
        rows.append([method, *work, *compared, *told])
    columns = [
        "method",
        "MFLOP",
        "MB",
        "roof, ms",
        "measured, ms",
        "roof / roof",
        "floor",
        "calls",
        "x SGD",
        "target",
        "",
    ]
    return Table("roofline", columns, rows, "What a step computes, moves and takes")


def _figure(cases: Sequence[Mapping[str, Any]]) -> Bars:
    names = dict.fromkeys(name for case in cases for name in case["counted"] if name != SGD)
    ratios = {name: [ratio_of(case, name) for case in cases] for name in names}
    floors = {name: [floor(case, name) for case in cases] for name in names}
    nets = [Case.of(case).title.replace(", ", "\n") for case in cases]
    return Bars("floor", "Time of a step (black: floor)", "", "x SGD", [], places=nets, bars=ratios, marks=floors)
