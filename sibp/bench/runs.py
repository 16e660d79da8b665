"""``runs``: the cost of a training step of every method in run folders, on its own problem, with its own settings."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sibp.analysis.clock import net_of
from sibp.analysis.comparison import Problem, compare
from sibp.bench.record import new_record
from sibp.bench.timing import device_clock, interleave, quartiles, ratios
from sibp.experiment.data import Data, load_data
from sibp.experiment.models import build_model, is_flat, objective_of
from sibp.experiment.optimizers import build_optimizer
from sibp.report.blocks import Cell, Section, Table, Text
from sibp.runs.collect import collect
from sibp.runs.errors import UserError
from sibp.runs.reading import Run
from sibp.runs.values import UsageError

SGD = "sgd"
PERIODS = ("every", "inverse_every")  # settings of optimizers: steps between two updates of a preconditioner
_BATCHES = 20
NOTE = (
    "Each method trains with the setting of its runs, from their initial weights, on batches of their data, and starts "
    "over after as many steps as a run has. Trials of a line search, and work that only some steps do, are included. "
    "Ratios are medians over interleaved rounds, with quartiles in brackets. `sibp report --clock` uses these times "
    "instead of the runs' own."
)


class Training:
    """Training steps of a run; see `sibp.bench.timing.Stepper`.

    Attributes:
        period: steps after which costs repeat.
    """

    def __init__(self, run: Run, data: Data) -> None:
        """Builds the network and its optimizer as the run did, and takes some batches.

        Args:
            run: finished.
            data: its data set, with images in the form that its model takes.
        """
        self._config, self._form = run.config, (data.shape, data.classes)
        self._objective = objective_of(run.config["model"])
        optimizer = run.config["optimizer"]
        self.period = max([1, *(int(optimizer[key]) for key in PERIODS if optimizer.get(key))])
        self._length = max(2 * self.period, int(run.columns["step"][-1]))
        order = torch.randperm(len(data.train.inputs), generator=torch.Generator().manual_seed(0))
        rows = order.split(run.config["batch_size"])[:_BATCHES]
        self._batches = [(data.train.inputs[some], data.train.labels[some]) for some in rows]
        self._begin()

    def _begin(self) -> None:
        self._taken = 0
        self.model = build_model(self._config["model"], *self._form, self._config["seed"])
        self.optimizer = build_optimizer(self._config["optimizer"], self.model)

    def restart(self) -> None:
        """Begins again if the run's steps have all been taken."""
        if self._taken >= self._length:
            self._begin()

    def step(self) -> None:
        """Takes a step as the training loop does."""
        x, y = self._batches[self._taken % len(self._batches)]
        self._taken += 1

        def loss_now() -> torch.Tensor:
            return self._objective.loss(self.model(x), x, y, "mean")

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = loss_now()
            loss.backward()
            return loss

        searched: Any = self.optimizer
        if getattr(searched, "line_search", False):
            searched.step(evaluate=loss_now, loss=closure().detach())
        else:
            searched.step(closure)


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Time the steps of all methods of some runs.

    Args:
        args: folders, data_root, seconds.
        arguments: of the command line.

    Returns:
        The record, with a case for every network and batch size: ``net``, ``batch``, ``seconds_per_step`` and
        ``processor_seconds_per_step`` (method -> one sample per round).

    Raises:
        UserError: no such folder, no usable run in it, or data files are missing.
    """
    try:
        problems = compare(collect(args.folders).runs)
    except UsageError as error:
        raise UserError(str(error)) from error
    record = new_record("runs", arguments, "cpu") | {"cases": []}
    for (net, batch), found in _trained(problems).items():
        workers = {name: Training(run, _data(run, args.data_root)) for name, run in found.items()}
        samples = interleave(workers, args.seconds, device_clock("cpu"))
        times = {"seconds_per_step": samples.seconds, "processor_seconds_per_step": samples.processor}
        record["cases"].append({"net": net, "batch": batch, **times})
    if not record["cases"]:
        raise UserError(f"{', '.join(map(str, args.folders))}: no run has finished.")
    return record


def _trained(problems: Sequence[Problem]) -> dict[tuple[str, int], dict[str, Run]]:
    """A finished run of each method, by network and batch size; problems that agree in both share an entry."""
    found: dict[tuple[str, int], dict[str, Run]] = {}
    for problem in problems:
        methods = found.setdefault((net_of(problem), int(problem.config["batch_size"])), {})
        for method in problem.methods:
            ended = [run for run in method.runs if run.status == "completed"]
            if ended:
                methods.setdefault(method.name, ended[0])
    return {key: methods for key, methods in found.items() if methods}


def _data(run: Run, root: Path) -> Data:
    return load_data(run.config["dataset"], str(root), False).prepared(
        is_flat(run.config["model"]), torch.device("cpu")
    )


def sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables.

    Args:
        record: from `measure`.

    Returns:
        One table per network and batch size.
    """
    found = [Section("Time of a step of each method", [Text(NOTE)])]
    for case in record["cases"]:
        found.append(Section(f"{case['net']}, batch {case['batch']}", [_table(case)]))
    return found


def _table(case: Mapping[str, Any]) -> Table:
    wall, processor = case["seconds_per_step"], case["processor_seconds_per_step"]
    rows: list[list[Cell]] = []
    for name in wall:
        row: list[Cell] = [name]
        for samples in (wall, processor):
            row.append(quartiles([1e3 * value for value in samples[name]]))
            base = samples.get(SGD)
            row.append(None if base is None else 1.0 if name == SGD else ratios(samples[name], base))
        rows.append(row)
    columns = ["method", "ms a step", "x SGD", "processor ms", "x SGD's"]
    return Table("runs", columns, rows, f"Time of a step, {len(next(iter(wall.values())))} rounds")
