"""Group runs into problems, methods and settings, and choose each method's setting."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from sibp.analysis.outcomes import (
    OF_ACCURACY,
    OF_LOSS,
    Quantity,
    Target,
    final,
    median_over,
    over_runs,
    seconds_per_step,
)
from sibp.analysis.scoring import Choice, choose, edge
from sibp.analysis.statistics import Estimate
from sibp.runs.identity import FINAL, TRIAL, method_name, problem_of, setting_name
from sibp.runs.reading import UNFINISHED, Run
from sibp.runs.values import brief, canonical, leaves, number_or_nan, shown

MOST_WIDTHS = 30  # of hidden layers in a title
RANK = {"completed": 0, "diverged": 1, "failed": 2, UNFINISHED: 3}


@dataclass(frozen=True, eq=False)
class Setting:
    """A method with its hyper-parameters, and one run per seed."""

    optimizer: dict[str, Any]
    runs: list[Run]

    @property
    def label(self) -> str:
        """The hyper-parameters in use, such as ``lr=0.1 momentum=0.9``."""
        return setting_name(self.optimizer)

    @cached_property
    def hyper_parameters(self) -> dict[str, float]:
        """The hyper-parameters that are single numbers."""
        numbers = {key: number_or_nan(value) for key, value in self.optimizer.items()}
        return {key: value for key, value in numbers.items() if not math.isnan(value)}

    def count(self, status: str) -> int:
        """How many of its runs have a status: completed, diverged, failed or unfinished."""
        return sum(run.status == status for run in self.runs)


@dataclass(frozen=True, eq=False)
class Method:
    """All settings tried of an optimizer (with its solver), and the chosen one."""

    name: str  # such as ``sibp cg:5``
    settings: list[Setting]  # in a fixed order
    choice: Choice | None  # how the setting was chosen; None without a finished run
    chosen: Setting | None  # the chosen setting; None without a finished run
    runs: list[Run]  # the chosen setting's runs shown in the report, ordered by seed

    @property
    def label(self) -> str | None:
        """The chosen setting's label, or None."""
        return self.chosen.label if self.chosen else None

    @property
    def all_runs(self) -> list[Run]:
        """The runs of all its settings."""
        return [run for setting in self.settings for run in setting.runs]

    def grid(self, key: str) -> list[float]:
        """The tried values of a hyper-parameter, sorted."""
        return sorted({s.hyper_parameters[key] for s in self.settings if key in s.hyper_parameters})

    def edges(self) -> list[str]:
        """Hyper-parameters chosen at the edge of their grid, such as ``lr = 3 is the largest tried``."""
        if self.chosen is None:
            return []
        return [
            f"{shown(key)} = {value:g} is the {side} tried"
            for key, value in sorted(self.chosen.hyper_parameters.items())
            if (side := edge(self.grid(key), value))
        ]

    @property
    def validated(self) -> bool:
        """Whether a completed run has validation metrics; also true if no run completed."""
        return _validated(self.all_runs)

    def step_seconds(self) -> float | None:
        """Median seconds per step over the shown runs; None if unknown."""
        return median_over(self.runs, seconds_per_step)

    def by_seed(self, quantity: Quantity) -> dict[int, float]:
        """``{seed: value}`` over the shown runs that have a value."""
        return {run.seed: value for run in self.runs if (value := quantity.of(run)) is not None}

    def over_seeds(self, quantity: Quantity) -> Estimate | None:
        """The median over the shown runs, as `over_runs`."""
        return over_runs(self.runs, quantity.of)

    def paired(self, other: "Method") -> list[tuple[Run, Run]]:
        """Its shown runs, each with the other method's shown run of the same seed."""
        rivals = {run.seed: run for run in other.runs}
        return [(run, rivals[run.seed]) for run in self.runs if run.seed in rivals]


@dataclass(eq=False)
class Problem:
    """A training task: data set, model, batch size and length."""

    config: dict[str, Any]  # the settings shared by all runs
    title: str  # short and unique within a report
    methods: list[Method]  # sorted by name, SGD first
    targets: list[Target]  # the report shows steps and seconds to each
    # (omitted run, kept run) of the same setting and seed
    repeated: list[tuple[Run, Run]] = field(default_factory=list)
    # method -> seconds per step, measured separately; None to use the runs' own
    clock: Mapping[str, Sequence[float]] | None = None

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return _name(self.config.get("dataset"))

    @property
    def runs(self) -> list[Run]:
        """All runs of all methods."""
        return [run for method in self.methods for run in method.all_runs]

    @property
    def quantities(self) -> tuple[Quantity, Quantity, Quantity]:
        """Final and best validation metric, and test metric: accuracies, or losses if no run has an accuracy."""
        return OF_LOSS if all(np.isnan(run.columns["val_acc"]).all() for run in self.runs) else OF_ACCURACY

    @property
    def shown_runs(self) -> list[Run]:
        """The runs of the chosen settings that the report shows."""
        return [run for method in self.methods for run in method.runs]

    @property
    def by_name(self) -> dict[str, Method]:
        """``{name: method}``."""
        return {method.name: method for method in self.methods}


def compare(runs: Sequence[Run], target_acc: float | None = None, target_loss: float | None = None) -> list[Problem]:
    """Group runs into problems, and choose the setting of every method.

    Args:
        runs: all runs.
        target_acc: validation accuracy to reach; None for the runs' ``target_val_acc``, if they agree.
        target_loss: training loss to reach, or None.
    """
    groups = _grouped(runs, lambda run: canonical(problem_of(run.config)))
    configs = [problem_of(group[0].config) for group in groups]
    problems = []
    for config, title, group in zip(configs, _titles(configs), groups, strict=True):
        kept, repeated = _one_per_seed(group)
        targets = _targets(group, target_acc, target_loss)
        problems.append(Problem(config, title, methods_of(kept), targets, repeated))
    return sorted(problems, key=lambda problem: problem.title)


def _grouped(runs: Iterable[Run], key: Callable[[Run], Hashable]) -> list[list[Run]]:
    groups: defaultdict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return list(groups.values())


def _one_per_seed(runs: Iterable[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Keep one of the runs with the same setting and seed: a completed run if possible, then the latest."""
    kept, repeated = [], []
    for group in _grouped(runs, lambda run: canonical([run.optimizer, run.seed])):
        latest_first = sorted(group, key=lambda run: str(run.summary.get("started", "")), reverse=True)
        best, *others = sorted(latest_first, key=lambda run: RANK[run.status])
        kept.append(best)
        repeated += [(other, best) for other in others]
    return kept, repeated


def methods_of(runs: Iterable[Run]) -> list[Method]:
    """The methods of one problem, sorted by name, SGD first; no two runs may have the same setting and seed."""
    methods = [_method(group) for group in _grouped(runs, lambda run: method_name(run.optimizer))]
    return sorted(methods, key=lambda method: (not method.name.startswith("sgd"), method.name))


def _method(runs: list[Run]) -> Method:
    groups = _grouped(sorted(runs, key=lambda run: run.seed), lambda run: canonical(run.optimizer))
    settings = [Setting(group[0].optimizer, group) for group in groups]
    settings.sort(key=lambda setting: (*_grid_position(setting), setting.label, canonical(setting.optimizer)))
    trials = {run.seed for run in runs if run.role == TRIAL}
    finalists = [s for s in settings if any(run.role == FINAL for run in s.runs)] or settings
    name, validated = method_name(runs[0].optimizer), _validated(runs)
    choice = choose([_final_metrics(setting, validated) for setting in finalists], trials)
    if choice is None:
        return Method(name, settings, None, None, [])
    chosen = finalists[choice.setting]
    return Method(name, settings, choice, chosen, [run for run in chosen.runs if run.seed in choice.shown_seeds])


def _grid_position(setting: Setting) -> tuple[float, ...]:
    numbers = setting.hyper_parameters
    return (numbers.get("lr", 0.0), *(numbers[key] for key in sorted(numbers) if key != "lr"))


def _final_metrics(setting: Setting, validated: bool) -> dict[int, tuple[float, float]]:
    """``{seed: (accuracy, loss)}`` on validation data; without any, the training loss and no accuracy."""
    found = {}
    for run in setting.runs:
        accuracy = final(run, "val_acc") if validated else None
        loss = final(run, "val_loss" if validated else "train_loss")
        if accuracy is not None or loss is not None:
            found[run.seed] = (-math.inf if accuracy is None else accuracy, math.inf if loss is None else loss)
    return found


def _validated(runs: Iterable[Run]) -> bool:
    ended = [run for run in runs if run.status == "completed"]
    return not ended or not all(np.isnan(run.columns[key]).all() for run in ended for key in ("val_acc", "val_loss"))


def _targets(runs: Sequence[Run], accuracy: float | None, loss: float | None) -> list[Target]:
    if accuracy is None:
        own = {number_or_nan(run.config.get("target_val_acc")) for run in runs}
        accuracy = own.pop() if len(own) == 1 else math.nan
    wanted = {"val_acc": accuracy, "train_loss": loss}
    return [Target(column, value) for column, value in wanted.items() if value is not None and not math.isnan(value)]


def _titles(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Data set, model, batch size and length; problems with equal titles also get the settings that differ."""
    named = [(_title(config), leaves(config)) for config in configs]
    titles: list[str] = []
    for name, own in named:
        rivals = [rival for rival_name, rival in named if rival_name == name]
        keys = {key for rival in rivals for key in rival.keys() | own.keys() if rival.get(key) != own.get(key)}
        title = shown(" · ".join([name, *(f"{key}={brief(own.get(key))}" for key in sorted(keys))]))
        same = (f"{title} ({i})" for i in count(2))  # they differ in what was cut off, or in the type of a value
        titles.append(title if title not in titles else next(each for each in same if each not in titles))
    return titles


def _title(config: dict[str, Any]) -> str:
    dataset, model = config.get("dataset"), config.get("model")
    parts = [_name(dataset), _name(model), f"batch {brief(config.get('batch_size'))}"]
    if isinstance(model, dict) and isinstance(model.get("hidden"), list):
        widths = list(map(brief, model["hidden"]))
        many = [widths[0], "…", f"{widths[-1]} ({len(widths)} layers)"] if len(widths) > MOST_WIDTHS else widths
        parts[1] += " " + "-".join(many)
    if config.get("epochs") is not None:
        parts.append(f"{brief(config['epochs'])} epoch{'' if config['epochs'] == 1 else 's'}")
    if config.get("max_steps") is not None:
        parts.append(f"{brief(config['max_steps'])} steps")
    return " · ".join(parts)


def _name(group: Any) -> str:
    return brief(group.get("name")) if isinstance(group, dict) else brief(group)
