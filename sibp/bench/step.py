"""``step``: the cost of a training step, as a ratio to a step of torch.optim.SGD on the same net and batches."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sibp.analysis.statistics import Estimate
from sibp.bench import memory, modes
from sibp.bench.bars import Bars
from sibp.bench.floors import NOTE as FLOORS
from sibp.bench.floors import Machine, below, best_samples, floor
from sibp.bench.nets import NAMED, TARGETS, Case, choose_cases
from sibp.bench.record import new_record
from sibp.bench.timing import device_clock, interleave, quartiles, ratios
from sibp.bench.workers import METHODS, PAPER, PORTS, PROXBP, PROXPROP, PUBLISHED, SGD, Worker, check_methods
from sibp.report.blocks import Cell, Section, Table, Text

MEMORY_TARGET = 1.5
# Bounds on the ratio of the first method's time to the second's.
PAIRS = (
    (PUBLISHED, "cg:5", "at least", 20.0), (PAPER, "cg:5", "at least", 20.0),
    (PROXPROP, PROXBP, "at least", 5.0), (PROXBP, "exact", "at most", 1.0),
)  # fmt: skip
NOTE = (
    "Rounds are interleaved, and each gives one ratio; the tables have their medians, with quartiles in brackets. "
    "Processor time is that of all threads of the process; it includes the time that a thread waits for another, but "
    "not the work of other processes. The first step, with everything that is loaded, compiled and tuned during it, "
    "was timed in a separate process, which also measured peak memory: the most that tensors occupied at any moment of "
    "three steps. sgd is torch.optim.SGD; exact, cg:K and paper are solvers of SIBP; proxbp is ProxBP in closed form, "
    "proxprop the same step as its authors compute it; published is the step of paper with a matrix product for every "
    "value of the line search, as it was published; adam, muon, soap, kfac and foof are peers with the settings of "
    "configs/optimizer, and the cost of updating a preconditioner is spread over its period. A name with +compile is a "
    "step compiled by torch.compile, one with +graph a step replayed as a CUDA graph."
)
TARGETS_NOTE = " Targets are for ratios of processor time, in float32 on a CPU."


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Time the steps of all methods on all nets.

    Args:
        args: net, batch, activation, methods, seconds, device, dtype, memory.
        arguments: of the command line.

    Returns:
        The record.

    Raises:
        UserError: for unknown nets or methods.
    """
    cases = choose_cases(args.net, args.batch, args.activation)
    methods = {case: args.methods or _methods(case) for case in cases}
    for case, names in methods.items():
        check_methods(names, case, args.device)
    record = new_record("step", arguments, args.device)
    here = Machine.of(args.device, args.dtype)
    record |= {"dtype": args.dtype, "product_rate": here.product_rate, "cases": []}
    for case, names in methods.items():
        timed = measure_case(case, names, args.seconds, args.device, args.dtype, args.memory)
        record["cases"].append(timed | here.counted(case, list(timed["seconds_per_step"])))
    return record


def measure_case(
    case: Case, methods: Sequence[str], seconds: float, device: str, dtype: str, with_memory: bool = True
) -> dict[str, Any]:
    """Time the steps of some methods on one net.

    Args:
        case: net and batch size.
        methods: in addition to SGD, which is always timed.
        seconds: duration of the rounds.
        device: "cpu" or "cuda".
        dtype: "float32" or "float64".
        with_memory: whether to measure memory and the first step.

    Returns:
        ``net``, ``batch``, ``activation``, ``device``, ``dtype``, ``seconds_per_step`` and
        ``processor_seconds_per_step`` (method -> one sample per round), ``memory`` (method -> see `memory.measure`) and
        ``failed`` (method -> why its step could not be compiled or recorded as a graph).
    """
    names = list(dict.fromkeys([SGD, *methods]))
    extra = [name for name in names if name not in PORTS] if with_memory else []
    taken = {name: memory.measure(case, name, device, dtype, torch.get_num_threads()) for name in extra}
    workers, failed = _workers(case, names, device, dtype)
    samples = interleave(workers, seconds, device_clock(device))
    about = {"net": case.net, "batch": case.batch, "activation": case.activation, "device": device, "dtype": dtype}
    times = {"seconds_per_step": samples.seconds, "processor_seconds_per_step": samples.processor}
    return {**about, **times, "memory": taken, "failed": failed}


def _workers(case: Case, names: Sequence[str], device: str, dtype: str) -> tuple[dict[str, Worker], dict[str, str]]:
    """The methods whose first step succeeds, and the errors of the others; only compiled or recorded steps may fail."""
    workers, failed = {}, {}
    for name in names:
        try:
            workers[name] = Worker(case, name, device, dtype)
            workers[name].step()
        except Exception as error:
            if not modes.split(name)[1]:
                raise
            workers.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return workers, failed


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables and a picture.

    Args:
        record: from `measure`.

    Returns:
        One table per net, one of the other targets, one picture.
    """
    has_targets = any(map(targets_of, record["cases"]))
    found = [Section("Time of a step against SGD's", [Text(f"{NOTE} {FLOORS}{TARGETS_NOTE if has_targets else ''}")])]
    for case in record["cases"]:
        failed = [Text(f"{name} failed: {why}", warning=True) for name, why in case.get("failed", {}).items()]
        found.append(Section(Case.of(case).title, [_table(case), *failed, *_pairs(case)]))
    return [*found, Section("All nets", [_figure(record["cases"])])]


def headline(record: Mapping[str, Any]) -> str:
    """The record in one sentence.

    Args:
        record: from `measure`.

    Returns:
        The range of medians over all nets for each method but the ports.
    """
    spans = []
    for name in _shown(record["cases"]):
        medians = [best_ratio(case, name).median for case in record["cases"] if name in case["seconds_per_step"]]
        low, high = (f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in (min(medians), max(medians)))
        spans.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    number, about = len(record["cases"]), record["machine"]
    where = about["device"] if about["device"] != "cpu" else f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    nets = f"{number} nets" if number > 1 else Case.of(record["cases"][0]).title
    return f"Cost of a training step, in steps of SGD: {', '.join(spans)} ({nets}, {where}, medians)."


def verdict(ratio: Estimate, bound: float, sense: str = "at most") -> str:
    """Whether a target is met.

    Args:
        ratio: measured.
        bound: the target.
        sense: "at most" or "at least".

    Returns:
        "met" or "missed", by the median; "narrowly" if the bound is between the quartiles.
    """
    value, low, high = ratio.median, ratio.low, ratio.high
    word = "met" if (value <= bound if sense == "at most" else value >= bound) else "missed"
    return f"narrowly {word}" if low is not None and high is not None and low < bound < high else word


def ratio_of(case: Mapping[str, Any], method: str, base: str = SGD) -> Estimate:
    """The ratio of two methods' times of a step.

    Args:
        case: one of a record's.
        method: the method.
        base: the other.

    Returns:
        Median and quartiles.
    """
    return ratios(case["seconds_per_step"][method], case["seconds_per_step"][base])


def processor_ratio(case: Mapping[str, Any], method: str) -> Estimate | None:
    """The ratio of a method's processor time of a step to SGD's.

    Args:
        case: one of a record's.
        method: the method.

    Returns:
        Median and quartiles; None for early records, which have no processor time.
    """
    samples = case.get("processor_seconds_per_step")
    return ratios(samples[method], samples[SGD]) if samples else None


def targets_of(case: Mapping[str, Any]) -> dict[str, float]:
    """The targets of a net; only nets of `TARGETS`, on a CPU in float32, have any.

    Args:
        case: one of a record's.

    Returns:
        Method -> the largest ratio.
    """
    other = (case.get("device", "cpu"), case.get("dtype", "float32")) != ("cpu", "float32")
    return {} if other else TARGETS.get(Case.of(case), {})


def judged(case: Mapping[str, Any], method: str) -> list[Cell]:
    """The target of a method on a net and the verdict; two empty cells without a target.

    Args:
        case: one of a record's.
        method: the method.
    """
    target, ratio = targets_of(case).get(method), processor_ratio(case, method)
    if not target or not ratio:
        return [None, None]
    word = verdict(ratio, target)
    return [f"≤ {target:g}", word + (below(case, method, target) if "missed" in word else "")]


def best_ratio(case: Mapping[str, Any], method: str) -> Estimate:
    """The ratio of a method's time of a step to SGD's, by `best_samples`.

    Args:
        case: one of a record's.
        method: the method.

    Returns:
        Median and quartiles.
    """
    samples = best_samples(case)
    return ratios(samples[method], samples[SGD])


def _methods(case: Case) -> list[str]:
    """Methods that are timed by default."""
    names: list[str] = list(METHODS)
    if case == Case("784-500-10", 100):
        names += [PAPER, PUBLISHED]
    return names if case.net in NAMED else [*names, PROXPROP]


def _table(case: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    processor, base = case.get("processor_seconds_per_step", {}), case["memory"].get(SGD, {}).get("peak_bytes")
    for method, samples in case["seconds_per_step"].items():
        taken, is_base = case["memory"].get(method, {}), method == SGD
        wall: list[Cell] = [_milliseconds(samples), 1.0 if is_base else ratio_of(case, method)]
        own = _milliseconds(processor[method]) if processor else None
        work: list[Cell] = [own, 1.0 if is_base and processor else processor_ratio(case, method)]
        work += [floor(case, method), floor(case, method, "pieces_seconds")]
        peak, first = taken.get("peak_bytes"), taken.get("first_step_seconds")
        share = peak / base if peak and base else None
        remembered: list[Cell] = [peak / 1e6 if peak else taken.get("failed"), share]
        remembered.append(verdict(Estimate(share, None, None, 1), MEMORY_TARGET) if share and not is_base else None)
        rows.append([method, *wall, *work, *judged(case, method), first * 1e3 if first else None, *remembered])
    times = ["ms a step", "x SGD", "processor ms", "x SGD's", "floor", "pieces", "target", ""]
    columns = ["method", *times, "first step, ms", "peak memory, MB", "x SGD's", f"≤ {MEMORY_TARGET:g}"]
    return Table("step", columns, rows, f"Time and memory of a step, {len(case['seconds_per_step'][SGD])} rounds")


def _milliseconds(samples: Sequence[float]) -> Estimate:
    return quartiles([1e3 * value for value in samples])


def _pairs(case: Mapping[str, Any]) -> list[Table]:
    rows: list[list[Cell]] = []
    for method, other, sense, bound in PAIRS if targets_of(case) else ():
        if {method, other} <= case["seconds_per_step"].keys():
            ratio = ratio_of(case, method, other)
            rows.append([f"{method} / {other}", ratio, f"{sense} {bound:g}", verdict(ratio, bound, sense)])
    return [Table("pairs", ["times", "ratio", "target", ""], rows, "Other targets")] if rows else []


def _shown(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods in a picture: all except SGD, whose ratio is 1, and the ports, which are much slower."""
    timed = dict.fromkeys(name for case in cases for name in case["seconds_per_step"])
    return [name for name in timed if name not in (SGD, *PORTS)]


def _figure(cases: Sequence[Mapping[str, Any]]) -> Bars:
    names = _shown(cases)
    bars = {name: [best_ratio(c, name) if name in c["seconds_per_step"] else None for c in cases] for name in names}
    marks = {name: [targets_of(case).get(name) for case in cases] for name in names}
    nets = [Case.of(case).title.replace(", ", "\n") for case in cases]
    return Bars("ratios", "Time of a step (line: target)", "", "x SGD", [], places=nets, bars=bars, marks=marks)
