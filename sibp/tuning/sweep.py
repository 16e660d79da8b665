"""Sweep files, ``configs/sweep/NAME.yaml``: which methods are tuned, over which grids, by which rule."""

import dataclasses
import difflib
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from sibp.experiment import compose
from sibp.experiment.models import objective_of
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.settings import Settings, checked
from sibp.runs.errors import UserError
from sibp.runs.identity import FINAL, TRIAL
from sibp.runs.yaml_file import YamlError, parse_yaml
from sibp.tuning.grid import Axis, Point, setting

CRITERIA, MOMENTS = ("val_acc", "val_loss", "train_loss"), ("last", "best")
DECIDED = ("seed", "evaluate_test", "role", "optimizer")  # set elsewhere in the file, not by an override


@dataclass(frozen=True)
class Method:
    """A method: the resolved config shared by its runs, and the hyper-parameters to tune."""

    name: str
    config: dict[str, Any]
    axes: tuple[Axis, ...]

    def setting(self, point: Point) -> dict[str, float]:
        """The hyper-parameters at a point of the grid.

        Args:
            point: one position per axis.

        Returns:
            name -> value.
        """
        return dict(zip((axis.name for axis in self.axes), setting(self.axes, point), strict=True))


@dataclass(frozen=True)
class Sweep:
    """A sweep: the same rules for all its methods.

    Attributes:
        name: of its file.
        root: output folder, with run folders in ``trials/`` and ``final/``, and the record.
        trials: number of settings tried of every method, including the initial grid.
        tuning_seeds: every setting is run with each and judged by the median.
        final_seeds: of the chosen settings' runs.
        criterion: val_acc (then val_loss), val_loss (then val_acc) or train_loss (then val_loss).
        at: ``last`` or ``best`` logged row of a run.
        final_looks: evaluations of a final run per evaluation of a trial.
        final_early: ``log_early`` of the final runs; None: that of the trials.
    """

    name: str
    root: Path
    methods: tuple[Method, ...]
    trials: int
    tuning_seeds: list[int]
    final_seeds: list[int]
    criterion: str
    at: str
    final_looks: int
    final_early: int | None

    @property
    def count(self) -> int:
        """The number of runs, if no grid runs out of settings."""
        return len(self.methods) * (self.trials * len(self.tuning_seeds) + len(self.final_seeds))

    def job(self, method: Method, point: Point, seed: int, final: bool) -> dict[str, Any]:
        """The config of one run.

        Args:
            method: the method.
            point: its setting.
            seed: of the run.
            final: whether it is a final run of a chosen setting; only those evaluate test data.

        Returns:
            The resolved config.
        """
        looks = self.final_looks if final else 1
        return {
            **method.config,
            "optimizer": {**method.config["optimizer"], **method.setting(point)},
            "log_every": max(1, method.config["log_every"] // looks),
            "log_early": (final and self.final_early) or method.config["log_early"],
            "seed": seed,
            "evaluate_test": final,
            "role": FINAL if final else TRIAL,
            "run_root": str(self.root / ("final" if final else "trials")),
        }


@dataclass(frozen=True, kw_only=True)
class _File:
    """The keys of a sweep file and their types."""

    shared: list[str]
    methods: dict[str, Any]
    trials: int
    tuning_seeds: list[int]
    final_seeds: list[int]
    criterion: str = "val_acc"
    at: str = "last"
    final_looks: int = 1
    final_early: int | None = None


def names(overrides: Sequence[str] = ()) -> list[str]:
    """The names of all sweeps.

    Args:
        overrides: of the command line; one of them may name a folder of the user's, which may hold a folder ``sweep``.

    Returns:
        The names of the files in ``configs/sweep`` and in that folder.
    """
    return sorted(_files(overrides))


def _files(overrides: Sequence[str]) -> dict[str, Path]:
    return {path.stem: path for folder in compose.folders(overrides) for path in (folder / "sweep").glob("*.yaml")}


def read_sweep(name: str, overrides: Sequence[str]) -> Sweep:
    """Read and check a sweep file, and compose the configs of its methods.

    Args:
        name: of the file in ``configs/sweep``.
        overrides: ``key=value``, as for sibp.train; they win over the file's own.

    Returns:
        The sweep.

    Raises:
        UserError: the file or an override is wrong; says where, and how to correct it.
    """
    if name not in (known := names(overrides)):
        raise UserError(f"There is no sweep {name!r}{_suggestion(name, known)} Choose one of: {', '.join(known)}.")
    _refuse_overrides_of_sweep(overrides)
    content = _content(_files(overrides)[name])
    where = f"In sweep {name}: "
    try:
        file = _File(**_checked_keys(_merged_with_base(content, _files(overrides))))
        _check(file)
        _refuse_overrides_of_sweep(file.shared)
        # Settings are chosen on all validation images, whatever subset an experiment evaluates for its curves.
        shared = [f"run_root=runs/tuning/{name}", "eval_val_limit=null", *file.shared, *overrides]
        methods = tuple(_method(str(each), node, shared) for each, node in file.methods.items())
        _check_methods(methods, file.trials)
        if file.criterion == "val_acc" and objective_of(methods[0].config["model"]).right is None:
            name = methods[0].config["model"]["name"]
            raise UserError(f"criterion=val_acc is not possible, as model={name} has no accuracy: say val_loss.")
    except UserError as error:
        raise UserError(where + str(error)) from error
    root = Path(methods[0].config["run_root"])
    rest = {key: value for key, value in vars(file).items() if key not in ("shared", "methods")}
    return Sweep(name, root, methods, **rest)


def _content(path: Path) -> Any:
    try:
        content = parse_yaml(path.read_text())
    except (OSError, ValueError, YamlError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    methods = content.get("methods") if isinstance(content, Mapping) else None
    for name, node in methods.items() if isinstance(methods, Mapping) else ():
        if isinstance(node, dict) and "words" in node and "overrides" not in node:
            node["overrides"] = node.pop("words")
            warnings.warn(
                f"{path}: methods.{name}.words is called overrides since 0.2.0; 0.3.0 will refuse the old name.",
                FutureWarning,
                stacklevel=2,
            )
    return content


def _merged_with_base(content: Any, files: Mapping[str, Path]) -> Any:
    """Merge a sweep's content with the sweep named by ``like``.

    The content's own keys take precedence, also within a method. A method that is null is removed.
    """
    if not isinstance(content, Mapping) or "like" not in content:
        return content
    base, own = content["like"], {key: value for key, value in content.items() if key != "like"}
    if base not in files:
        raise UserError(f"like={base} is not possible: there is no such sweep{_suggestion(str(base), files)}")
    below = _content(files[base])
    if not isinstance(below, Mapping) or "like" in below:
        raise UserError(f"like={base} is not possible: name a sweep that is like no other itself.")
    methods = _mapping(f"methods of sweep {base}", below.get("methods", {}))
    for name, node in _mapping("methods", own.get("methods", {})).items():
        if node is None and name not in methods:
            raise UserError(f"methods.{name} leaves nothing out: sweep {base} has no such method.")
        methods[name] = {**methods.get(name, {}), **node} if isinstance(node, Mapping) else node
    return {**below, **own, "methods": {name: node for name, node in methods.items() if node is not None}}


def _checked_keys(content: Any) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(_File)}
    content = _mapping("the file", content, list(fields))
    for key, field in fields.items():
        if key not in content and field.default is dataclasses.MISSING:
            raise UserError(f"{key} is missing: add it; the keys are {', '.join(fields)}.")
    for key, value in content.items():
        if fields[key].type == list[str]:
            if not isinstance(value, list) or not all(isinstance(override, str) for override in value):
                raise UserError(f"{key}={value} is not possible: give a list of key=value overrides.")
        else:
            checked(key, value, fields[key].type)
    return content


def _check(file: _File) -> None:
    for key, value, known in (("criterion", file.criterion, CRITERIA), ("at", file.at, MOMENTS)):
        if value not in known:
            raise UserError(f"{key}={value} is not known; choose one of: {', '.join(known)}.")
    for key, seeds in (("tuning_seeds", file.tuning_seeds), ("final_seeds", file.final_seeds)):
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise UserError(f"{key}={seeds} is not possible: give different whole numbers of 0 or more.")
    if both := sorted({*file.tuning_seeds} & {*file.final_seeds}):
        raise UserError(
            f"seed {both[0]} is in tuning_seeds and in final_seeds: final seeds must be fresh, remove it from one."
        )
    if file.final_looks < 1:
        raise UserError(f"final_looks={file.final_looks} is not possible: give a whole number of 1 or more.")
    if file.final_early is not None and file.final_early < 1:
        raise UserError(f"final_early={file.final_early} is not possible: give a whole number of 1 or more, or null.")
    if not file.methods:
        raise UserError("methods is empty: add one or more.")


def _refuse_overrides_of_sweep(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in DECIDED:
            raise UserError(
                f"{override} is not possible: methods, tuning_seeds and final_seeds of the sweep file set it."
            )


def _method(name: str, node: Any, overrides: Sequence[str]) -> Method:
    node = _mapping(f"methods.{name}", node, ["overrides", "grid"])
    own = node.get("overrides")
    if not isinstance(own, list) or not all(isinstance(override, str) for override in own):
        raise UserError(
            f"methods.{name}.overrides is no list of overrides: such as [optimizer=sibp, 'optimizer.solver=cg:3']."
        )
    for override in own:
        if not override.startswith("optimizer"):
            raise UserError(
                f"methods.{name}.overrides: {override} is no choice of an optimizer; put it under shared, for all."
            )
    config = compose.compose([*overrides, *own])
    known = [key for key, value in config["optimizer"].items() if type(value) in (int, float)]
    grid = _mapping(f"methods.{name}.grid", node.get("grid"), known)
    if not grid:
        raise UserError(f"methods.{name}.grid is empty: give lists of values for some of {', '.join(known)}.")
    axes = tuple(_axis(f"methods.{name}.grid", key, grid[key]) for key in sorted(grid, key=lambda key: key != "lr"))
    method = Method(name, config, axes)
    _try_out(method)
    return method


def _axis(where: str, key: str, values: Any) -> Axis:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise UserError(f"{where}.{key}={values} is not possible: give a list of numbers, such as [0.1, 0.3, 1.0].")
    try:
        return Axis(key, tuple(map(float, values)))
    except ValueError as error:
        raise UserError(f"{where}.{key}={values} is not possible: {error}.") from error


def try_out(sweep: Sweep, elsewhere: bool) -> None:
    """Check every method's first and last setting with the sweep's data and model, before the first run.

    Args:
        sweep: the sweep.
        elsewhere: whether its runs will be on other machines.

    Raises:
        UserError: a run could not start; says why.
    """
    from sibp.experiment.runner import check

    for method in sweep.methods:
        ends = [(0.0,) * len(method.axes), tuple(float(len(axis.values) - 1) for axis in method.axes)]
        try:
            check([sweep.job(method, point, sweep.tuning_seeds[0], False) for point in ends], elsewhere)
        except UserError as error:
            raise UserError(f"In sweep {sweep.name}: methods.{method.name}: {error}") from error


def _try_out(method: Method) -> None:
    """Build the method's optimizer on a small model, so that wrong settings are refused now and not in a run."""
    ends = [(0,) * len(method.axes), tuple(len(axis.values) - 1 for axis in method.axes)]
    Settings.from_config(method.config)
    for point in ends:
        choice = {**method.config["optimizer"], **method.setting(point)}
        try:
            build_optimizer(choice, nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)))
        except UserError as error:
            raise UserError(f"methods.{method.name}: {error}") from error


def _check_methods(methods: Sequence[Method], trials: int) -> None:
    sizes = {method.name: prod(len(axis.values) for axis in method.axes) for method in methods}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"the initial grids differ in size ({listed}): give every method as many settings.")
    size = max(sizes.values())
    if trials < size:
        raise UserError(f"trials={trials} is less than the {size} settings of the initial grid: give more.")
    seen: dict[tuple[str, ...], str] = {}
    for method in methods:
        options = tuple(sorted(f"{k}={v}" for k, v in method.config["optimizer"].items() if isinstance(v, str)))
        if options in seen:
            raise UserError(
                f"methods {seen[options]} and {method.name} are both {', '.join(options)}, and the report would take "
                "them for one: give one of them, with a grid that covers both."
            )
        seen[options] = method.name


def _mapping(where: str, node: Any, known: Collection[str] | None = None) -> dict[str, Any]:
    """Checks that a node is a mapping and, if `known` is given, that it has no other keys."""
    if not isinstance(node, Mapping):
        listed = f": its keys are {', '.join(known)}" if known is not None else ""
        raise UserError(f"{where} is not made of keys and values{listed}.")
    for key in node:
        if known is not None and key not in known:
            raise UserError(f"{where} has no key {key}{_suggestion(str(key), known)} The keys are: {', '.join(known)}.")
    return dict(node)


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else "."
