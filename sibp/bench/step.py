"""``step``: what a training step costs, as a ratio to a step of torch.optim.SGD on the same net and batches."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sibp.bench import memory
from sibp.bench.bars import Bars
from sibp.bench.nets import CONVNET, TARGETS, Case, choose_cases
from sibp.bench.record import new_record
from sibp.bench.timing import device_clock, interleave, quartiles, ratios
from sibp.bench.workers import METHODS, PAPER, PORTS, PROXBP, PROXPROP, PUBLISHED, SGD, Worker, check_methods
from sibp.report.blocks import Cell, Section, Table, Text
from sibp.report.statistics import Estimate

MEMORY_TARGET = 2.0
# Of two methods' times, the first at least or at most so many times the second.
PAIRS = (
    (PUBLISHED, "cg:5", "at least", 20.0), (PAPER, "cg:5", "at least", 20.0),
    (PROXPROP, PROXBP, "at least", 5.0), (PROXBP, "exact", "at most", 1.0),
)  # fmt: skip
NOTE = (
    "Ratios are medians over interleaved rounds, with quartiles in brackets; a round's ratio is that of its own times. "
    "The first step, with all that is loaded, compiled and tuned in it, was timed in a process of its own, as was "
    "memory: the most that tensors took at any moment of three steps. sgd is torch.optim.SGD; exact, cg:K and paper "
    "are solvers of SIBP; proxbp is ProxBP in closed form, proxprop the same step as its authors compute it; "
    "published is the step of paper with a matrix product for every value of the line search, as it was published. "
    "Targets were set for float32 and 2 threads of a CPU."
)


def measure(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Time the steps of all methods on all nets.

    Args:
        args: net, batch, methods, seconds, device, dtype.
        words: of the command line.

    Returns:
        The record.

    Raises:
        UserError: for nets or methods that are not known.
    """
    cases = choose_cases(args.net, args.batch)
    methods = {case: args.methods or _methods(case) for case in cases}
    for case, names in methods.items():
        check_methods(names, case)
    record = new_record("step", words, args.device)
    record |= {"dtype": args.dtype, "cases": []}
    for case, names in methods.items():
        record["cases"].append(measure_case(case, names, args.seconds, args.device, args.dtype, args.memory))
    return record


def measure_case(
    case: Case, methods: Sequence[str], seconds: float, device: str, dtype: str, with_memory: bool = True
) -> dict[str, Any]:
    """Time the steps of some methods on one net.

    Args:
        case: net and batch size.
        methods: SGD is always timed, whether it is among them or not.
        seconds: to spend on rounds.
        device: "cpu" or "cuda".
        dtype: "float32" or "float64".
        with_memory: whether to measure memory and the first step, too.

    Returns:
        ``net``, ``batch``, ``seconds_per_step`` (method -> one sample a round), ``memory`` (method -> see
        `memory.measure`).
    """
    names = list(dict.fromkeys([SGD, *methods]))
    extra = [name for name in names if name not in PORTS] if with_memory else []
    taken = {name: memory.measure(case, name, device, dtype, torch.get_num_threads()) for name in extra}
    workers = {name: Worker(case, name, device, dtype) for name in names}
    samples = interleave(workers, seconds, device_clock(device))
    return {"net": case.net, "batch": case.batch, "seconds_per_step": samples, "memory": taken}


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables and a picture.

    Args:
        record: from `measure`.

    Returns:
        A table for each net, one of the other targets, one picture.
    """
    found = [Section("Time of a step against SGD's", [Text(NOTE)])]
    for case in record["cases"]:
        title = Case(case["net"], case["batch"]).title
        found.append(Section(title, [_table(case), *_pairs(case)]))
    return [*found, Section("All nets", [_figure(record["cases"])])]


def verdict(ratio: Estimate, bound: float, sense: str = "at most") -> str:
    """Whether a target is met.

    Args:
        ratio: measured.
        bound: the target.
        sense: "at most" or "at least".

    Returns:
        "met" or "missed", by the median; "narrowly" if the bound lies between the quartiles.
    """
    value, low, high = ratio.median, ratio.low, ratio.high
    word = "met" if (value <= bound if sense == "at most" else value >= bound) else "missed"
    return f"narrowly {word}" if low is not None and high is not None and low < bound < high else word


def ratio_of(case: Mapping[str, Any], method: str, base: str = SGD) -> Estimate:
    """How many times as long a method's step takes as another's.

    Args:
        case: one of a record's.
        method: the method.
        base: the other.

    Returns:
        Median and quartiles.
    """
    return ratios(case["seconds_per_step"][method], case["seconds_per_step"][base])


def _methods(case: Case) -> list[str]:
    """What is timed unless the user says otherwise."""
    names: list[str] = list(METHODS)
    if case == Case("784-500-10", 100):
        names += [PAPER, PUBLISHED]
    return names if case.net == CONVNET else [*names, PROXPROP]


def _targets(case: Mapping[str, Any]) -> dict[str, float]:
    return TARGETS.get(Case(case["net"], case["batch"]), {})


def _table(case: Mapping[str, Any]) -> Table:
    rows = []
    for method, samples in case["seconds_per_step"].items():
        ratio, target, taken = ratio_of(case, method), _targets(case).get(method), case["memory"].get(method, {})
        judged: list[Cell] = [f"≤ {target:g}", verdict(ratio, target)] if target else [None, None]
        own, base = taken.get("peak_bytes"), case["memory"].get(SGD, {}).get("peak_bytes")
        share = own / base if own and base else None
        remembered: list[Cell] = [own / 1e6 if own else taken.get("failed"), share]
        remembered.append(verdict(Estimate(share, None, None, 1), MEMORY_TARGET) if share and method != SGD else None)
        first = taken.get("first_step_seconds")
        speed: list[Cell] = [_milliseconds(samples), ratio if method != SGD else 1.0]
        rows.append([method, *speed, *judged, first * 1e3 if first else None, *remembered])
    columns = ["method", "ms a step", "x SGD", "target", "", "first step, ms", "peak memory, MB", "x SGD's", "≤ 2"]
    return Table("step", columns, rows, f"Time and memory of a step, {len(case['seconds_per_step'][SGD])} rounds")


def _milliseconds(samples: Sequence[float]) -> Estimate:
    return quartiles([1e3 * value for value in samples])


def _pairs(case: Mapping[str, Any]) -> list[Table]:
    rows: list[list[Cell]] = []
    for method, other, sense, bound in PAIRS:
        if {method, other} <= case["seconds_per_step"].keys():
            ratio = ratio_of(case, method, other)
            rows.append([f"{method} / {other}", ratio, f"{sense} {bound:g}", verdict(ratio, bound, sense)])
    return [Table("pairs", ["times", "ratio", "target", ""], rows, "Other targets")] if rows else []


def _figure(cases: Sequence[Mapping[str, Any]]) -> Bars:
    timed = dict.fromkeys(name for case in cases for name in case["seconds_per_step"])
    names = [name for name in timed if name not in (SGD, *PORTS)]
    ratios = {name: [ratio_of(c, name) if name in c["seconds_per_step"] else None for c in cases] for name in names}
    marks = {name: [_targets(case).get(name) for case in cases] for name in names}
    nets = [f"{case['net']}\nbatch {case['batch']}" for case in cases]
    return Bars("ratios", "Time of a step (black: target)", "", "x SGD", [], groups=nets, bars=ratios, marks=marks)
