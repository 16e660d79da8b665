"""``roofline``: the least time that a step can take on this machine, and its measured time."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from sibp.bench.bars import Bars
from sibp.bench.floors import NOTE as FLOORS
from sibp.bench.floors import Machine, below, best_samples, floor
from sibp.bench.nets import Case, choose_cases
from sibp.bench.record import new_record
from sibp.bench.step import best_ratio, judged, measure_case, targets_of
from sibp.bench.timing import quartiles
from sibp.bench.workers import METHODS, PEERS, PORTS, SGD, check_methods
from sibp.report.blocks import Cell, Section, Table, Text
from sibp.runs.errors import UserError

NOTE = (
    "A step's operations are counted by the formulas in sibp/bench/counting.py, from the sizes of its layers. "
    f"{FLOORS} The column roof / roof is the ratio if SGD and the method were both as fast as the roof. The column "
    "calls adds to the floor what the calls of the method's many small operations cost beyond SGD's; they were timed "
    "in steps of a net of the same depth whose arithmetic takes hardly any time (8 neurons per layer, 4 rows). What "
    "the measured ratio exceeds it by is lost in caches, threads and small products. A target between the floor and "
    "calls could be met by fewer or cheaper calls alone. On a CPU all times are processor time."
)
_TINY_WIDTH, _TINY_BATCH = 8, 4


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Measure the machine's rates and the methods' steps, and count the steps' work.

    Args:
        args: net, batch, methods, seconds, device, dtype.
        arguments: of the command line.

    Returns:
        The record.

    Raises:
        UserError: for unknown nets or methods, and those without formulas.
    """
    cases = choose_cases(args.net, args.batch, args.activation)
    methods = args.methods or list(METHODS)
    for method in methods:
        if method in (*PORTS, *PEERS):
            raise UserError(f"--methods {method} has no formulas here: use it with step.")
    for case in cases:
        check_methods(methods, case)
    record, here = new_record("roofline", arguments, args.device), Machine.of(args.device, args.dtype)
    record |= {"dtype": args.dtype, "product_rate": here.product_rate, "cases": []}
    for case in cases:
        timed = measure_case(case, methods, args.seconds, args.device, args.dtype, with_memory=False)
        counted = here.counted(case, list(timed["seconds_per_step"]))
        record["cases"].append({**timed, **counted, "calls": _calls(case, methods, args)})
    return record


def with_calls(case: Mapping[str, Any], method: str) -> float | None:
    """The floor including the time of the method's calls.

    Args:
        case: one of a record's.
        method: the method.

    Returns:
        floor + (the method's calls - SGD's calls) / SGD's measured seconds; None if calls were not measured.
    """
    calls, least = case.get("calls"), floor(case, method)
    if not calls or least is None:
        return None
    more = quartiles(calls[method]).median - quartiles(calls[SGD]).median
    return least + more / quartiles(best_samples(case)[SGD]).median


def _calls(case: Case, methods: Sequence[str], args: argparse.Namespace) -> dict[str, list[float]] | None:
    """Seconds of a step of a tiny net with the same number of layers, one sample per round; None if not an MLP."""
    if not case.widths:
        return None
    tiny = Case("-".join([str(_TINY_WIDTH)] * len(case.widths)), _TINY_BATCH, case.activation)
    return best_samples(measure_case(tiny, methods, args.seconds / 4, args.device, args.dtype, with_memory=False))


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables and a picture.

    Args:
        record: from `measure`.

    Returns:
        One table per net and one picture.
    """
    rate = f"Matrix products: {record['product_rate'] / 1e9:.4g} GFLOP/s in {record['dtype']}."
    found = [Section("Roofline", [Text(NOTE), Text(rate)])]
    for case in record["cases"]:
        text = f"Passes over {case['size_bytes'] / 1e6:.3g} MB, the net's size: {case['bandwidth'] / 1e9:.3g} GB/s."
        title = Case.of(case).title
        found.append(Section(title, [Text(text), _table(case)]))
    return [*found, Section("All nets", [_figure(record["cases"])])]


def _table(case: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for method, counted in case["counted"].items():
        own = quartiles([1e3 * value for value in best_samples(case)[method]])
        least, target = counted["roof_seconds"], targets_of(case).get(method)
        called, told = with_calls(case, method), judged(case, method)
        if target and called and called > target and not below(case, method, target):
            told[1] = f"{told[1]}, below the floor with calls"
        work: list[Cell] = [counted["operations"] / 1e6, counted["bytes"] / 1e6, 1e3 * least, own]
        bounds = [floor(case, method), floor(case, method, "pieces_seconds"), called]
        compared: list[Cell] = [least / case["counted"][SGD]["roof_seconds"], *bounds, best_ratio(case, method)]
        rows.append([method, *work, *compared, *told])
    columns = ["method", "MFLOP", "MB", "roof, ms", "measured, ms", "roof / roof"]
    columns += ["floor", "pieces", "calls", "x SGD", "target", ""]
    return Table("roofline", columns, rows, "What a step computes, moves and takes")


def _figure(cases: Sequence[Mapping[str, Any]]) -> Bars:
    names = dict.fromkeys(name for case in cases for name in case["counted"] if name != SGD)
    ratios = {name: [best_ratio(case, name) for case in cases] for name in names}
    floors = {name: [floor(case, name) for case in cases] for name in names}
    nets = [Case.of(case).title.replace(", ", "\n") for case in cases]
    return Bars("floor", "Time of a step (line: floor)", "", "x SGD", [], places=nets, bars=ratios, marks=floors)
