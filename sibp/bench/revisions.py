"""``revisions``: the time of a training step at an earlier commit and now, in alternating processes."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from sibp.analysis.statistics import Estimate
from sibp.bench.bars import Bars
from sibp.bench.nets import Case, choose_cases
from sibp.bench.record import new_record
from sibp.bench.step import verdict
from sibp.bench.timing import quartiles
from sibp.bench.workers import ETA, LAM, PEERS, PORTS, PROXBP, SGD, SGD_STEP, check_methods
from sibp.report.blocks import Cell, Section, Table, Text
from sibp.runs.errors import UserError

SLOWER = 1.03
METHODS = ("exact", "cg:3")
_ROOT = Path(__file__).parents[2]
_STEPS = Path(__file__).with_name("revision_steps.py")
NOTE = (
    "Processes of the two revisions take turns, each with the same net, weights and batch. A process times its methods "
    "in turn and keeps the least processor time of each, since other work on the machine can only lengthen it. The "
    "table has the least times of all processes; now / then is their ratio, with the quartiles of the ratios of "
    "neighbouring processes in brackets. sgd runs the same code in both revisions, so its ratio shows the noise."
)


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Time steps at an earlier commit and now.

    Args:
        args: old, net, batch, activation, methods, seconds and rounds; torch's number of threads as set.
        arguments: of the command line.

    Returns:
        The record: ``cases``, each with ``net``, ``batch``, ``activation``, ``then`` and ``now`` (method -> seconds of
        processor time of a step, one for each process).

    Raises:
        UserError: no such commit, or a step fails in one of the revisions.
    """
    cases = choose_cases(args.net, args.batch, args.activation)
    methods = [SGD, *(args.methods or METHODS)]
    _check(methods, cases)
    record = new_record("revisions", arguments, "cpu")
    record |= {"old": _git("rev-parse", "--short=10", f"{args.old}^{{commit}}"), "cases": []}
    with tempfile.TemporaryDirectory(prefix="sibp-revisions-") as folder:
        old = Path(folder, "old")
        _git("worktree", "add", "--detach", str(old), args.old)
        try:
            _build(old)
            for case in cases:
                net = Path(folder, "net.pt")
                _save(case, net)
                times = _alternate({"then": old, "now": _ROOT}, net, methods, args.rounds, args.seconds)
                about = {"net": case.net, "batch": case.batch, "activation": case.activation}
                record["cases"].append(about | times)
        finally:
            _git("worktree", "remove", "--force", str(old))
    return record


def _check(methods: Sequence[str], cases: Sequence[Case]) -> None:
    for name in methods:
        if name in (PROXBP, *PORTS, *PEERS):
            raise UserError(f"--methods {name} is not for revisions, which compares the solvers of SIBP: exact, cg:K.")
    check_methods(methods, cases[0])


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as a table and a picture.

    Args:
        record: from `measure`.
    """
    rows: list[list[Cell]] = []
    for case in record["cases"]:
        for method in case["now"]:
            then, now = min(case["then"][method]), min(case["now"][method])
            cells: list[Cell] = [Case.of(case).title, method, then * 1e3, now * 1e3]
            base = [1.0, 1.0] if method == SGD else [_least(case, side, method) for side in ("then", "now")]
            judged = None if method == SGD else verdict(ratio_of(case, method), SLOWER)
            rows.append([*cells, ratio_of(case, method), judged, *base])
    columns = ["net", "method", "then, ms", "now, ms", "now / then", f"≤ {SLOWER:g}", "then x SGD", "now x SGD"]
    title = f"Processor time of a step at {record['old']} and now"
    return [Section(title, [Text(NOTE), Table("revisions", columns, rows, title), _bars(record)])]


def ratio_of(case: Mapping[str, Any], method: str) -> Estimate:
    """The ratio of a step's time now to that then.

    Args:
        case: one of a record's.
        method: the method.

    Returns:
        The ratio of the least times, with the quartiles of the ratios of neighbouring processes.
    """
    then, now = case["then"][method], case["now"][method]
    spread = quartiles([after / before for before, after in zip(then, now, strict=True)])
    return Estimate(min(now) / min(then), spread.low, spread.high, len(now))


def _least(case: Mapping[str, Any], side: str, method: str) -> float:
    return min(case[side][method]) / min(case[side][SGD])


def _bars(record: Mapping[str, Any]) -> Bars:
    cases = record["cases"]
    names = [name for name in cases[0]["now"] if name != SGD]
    bars: dict[str, list[Estimate | None]] = {name: [ratio_of(case, name) for case in cases] for name in names}
    nets = [Case.of(case).title.replace(", ", "\n") for case in cases]
    title = f"Processor time of a step, now / {record['old']}"
    return Bars("ratios", title, "", "now / then", [], places=nets, bars=bars, marks={})


def _alternate(
    trees: Mapping[str, Path], net: Path, methods: Sequence[str], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Revision -> method -> one time per process; the first revision of a round alternates."""
    times: dict[str, dict[str, list[float]]] = {side: {method: [] for method in methods} for side in trees}
    settings = json.dumps({"eta": ETA, "lam": LAM, "sgd": SGD_STEP, "seconds": seconds, "methods": methods})
    for number in range(rounds):
        for side in list(trees)[:: 1 if number % 2 == 0 else -1]:
            command = [sys.executable, "-P", str(_STEPS), str(net), settings]
            environment = {
                **os.environ,
                "PYTHONPATH": str(trees[side]),
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
            }
            environment["XDG_CACHE_HOME"] = str(net.parent)  # early revisions compiled their kernels there
            done = subprocess.run(command, env=environment, cwd=net.parent, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"A step failed in {trees[side]}: {done.stderr.strip().splitlines()[-1]}")
            for method, value in json.loads(done.stdout).items():
                times[side][method].append(value)
    return times


def _save(case: Case, path: Path) -> None:
    """The net as a graph of torch's own modules, which every revision can load whatever its classes are named."""
    torch.save(
        {"net": fx.symbolic_trace(case.model()), "shape": (case.batch, *case.shape), "classes": case.classes}, path
    )


def _build(tree: Path) -> None:
    """Builds the kernels of a revision that compiles them at installation."""
    if (tree / "setup.py").exists():
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"git {arguments[0]}: {done.stderr.strip().splitlines()[-1]} (--old takes a commit of this checkout)."
        )
    return done.stdout.strip()
