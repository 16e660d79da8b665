"""The settings of one run: typed, checked, and passed to allow-listed builders."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from sibp.runs.errors import UserError
from sibp.runs.identity import ROLES
from sibp.runs.values import shown

SHAPES = ("constant", "linear", "cosine")
DECAYS = ("lr", "prox_weight")
MOST_THREADS = 1024
LARGEST_INTEGER, LARGEST_FLOAT = 2**63 - 1, sys.float_info.max


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a run.

    ``dataset``, ``model`` and ``optimizer`` are mappings whose ``name`` selects a builder from a table; their other
    keys are the builder's arguments. A run ends at ``epochs`` or ``max_steps``, whichever comes first.
    """

    dataset: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    batch_size: int
    epochs: int | None
    max_steps: int | None
    seed: int
    schedule: str
    decays: str
    warmup_steps: int
    label_noise: float
    log_every: int
    checkpoint_every: int
    eval_train_limit: int | None
    target_val_acc: float | None
    evaluate_test: bool
    plugins: list[str]
    device: str
    threads: int | None
    data_root: str
    run_root: str
    download: bool
    force: bool
    progress: bool
    tensorboard: bool
    histograms: bool
    log_early: int | None = None
    eval_val_limit: int | None = None
    role: str | None = None
    replacement: bool = False
    train_limit: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Check a resolved config.

        Args:
            config: plain nested mapping, as composed from ``configs/``.

        Returns:
            The settings.

        Raises:
            UserError: a key is unknown, missing, of the wrong type or out of its bounds.
        """
        hints = typing.get_type_hints(cls)
        refuse_unknown("", config, list(hints))
        missing = [field.name for field in fields(cls) if field.name not in config and field.default is MISSING]
        if missing:
            raise UserError(f"The setting {missing[0]} is missing: give {missing[0]}=...")
        settings = cls(**{key: checked(key, value, hints[key]) for key, value in config.items()})
        settings._check_bounds()
        return settings

    def _check_bounds(self) -> None:
        for key in (
            "batch_size",
            "epochs",
            "max_steps",
            "log_every",
            "log_early",
            "checkpoint_every",
            "eval_train_limit",
            "train_limit",
            "eval_val_limit",
            "threads",
        ):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key}={value} is not possible: give a whole number of 1 or more.")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise UserError(f"threads={self.threads} is not possible: give a whole number of {MOST_THREADS} or less.")
        for key in ("seed", "warmup_steps"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}={getattr(self, key)} is not possible: give a whole number of 0 or more.")
        for key in ("run_root", "data_root"):
            if not getattr(self, key).strip():
                raise UserError(f"{key}= is empty: give a folder; the current one is {key}=.")
        for key, known in (("schedule", SHAPES), ("decays", DECAYS)):
            if getattr(self, key) not in known:
                raise UserError(f"{key}={getattr(self, key)} is not known; choose one of: {', '.join(known)}.")
        if self.role not in (None, *ROLES):
            raise UserError(f"role={self.role} is not known; choose one of: {', '.join(ROLES)}, null.")
        if self.decays != "lr" and self.schedule == "constant" and self.warmup_steps == 0:
            raise UserError(
                f"decays={self.decays} has no effect without schedule=... or warmup_steps=...: leave it out."
            )
        if not 0 <= self.label_noise <= 1:
            raise UserError(f"label_noise={self.label_noise} is not a fraction: give a number between 0 and 1.")
        if self.epochs is None and self.max_steps is None:
            raise UserError("The run would never end: give epochs=... or max_steps=...")
        if self.target_val_acc is not None and not 0 < self.target_val_acc <= 1:
            raise UserError(
                f"target_val_acc={self.target_val_acc} is not an accuracy: give a number between 0 and 1, "
                "or null for no target."
            )
        if self.histograms and not self.tensorboard:
            raise UserError("histograms=true has no effect without tensorboard=true: give both or neither.")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of steps of the whole run.

        Args:
            steps_per_epoch: full batches in one pass over the training images.

        Returns:
            The smaller of ``epochs`` passes and ``max_steps``.
        """
        limits = []
        if self.epochs is not None:
            limits.append(self.epochs * steps_per_epoch)
        if self.max_steps is not None:
            limits.append(self.max_steps)
        return min(limits)


def check_own_schedule(optimizer: Mapping[str, Any]) -> None:
    """Check an optimizer's own schedule: its shape, and the fraction of the run used for warm-up.

    Args:
        optimizer: the group, with ``schedule`` and ``warmup`` or without.

    Raises:
        UserError: an invalid value.
    """
    shape = checked("optimizer.schedule", optimizer.get("schedule"), str | None)
    warmup = checked("optimizer.warmup", optimizer.get("warmup"), float | None)
    if shape not in (None, *SHAPES):
        raise UserError(f"optimizer.schedule={shape} is not known; choose one of: {', '.join(SHAPES)}, null.")
    if warmup is not None and shape is None:
        raise UserError(f"optimizer.warmup={warmup} has no effect without optimizer.schedule=...: give both.")
    if warmup is not None and not 0 <= warmup < 1:
        raise UserError(f"optimizer.warmup={warmup} is not a share of the run: give 0 or more, less than 1.")


def refuse_unknown(prefix: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Refuse an unknown key.

    Args:
        prefix: dotted path of the mapping, ending in a dot, or empty.
        given: the mapping to check.
        known: the valid keys.

    Raises:
        UserError: names the first unknown key and the valid ones.
    """
    for key in given:
        if key not in known:
            names = ", ".join(prefix + name for name in sorted(known))
            none = f"this {prefix[:-1]} has no settings for an override or an experiment to give."
            here = f"the settings here are: {names}." if known else none
            raise UserError(f"There is no setting {prefix}{key}; {here}")


def checked(key: str, value: Any, hint: Any) -> Any:
    """Check one value against a type hint; integers are accepted as floats.

    Args:
        key: dotted name of the setting, for the error.
        value: as given.
        hint: int, float, bool, str, dict, list[int], list[str], or one of these or None.

    Returns:
        The value, with integers converted to floats where the hint is float.

    Raises:
        UserError: the value is of another type.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is types.NoneType and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) <= LARGEST_FLOAT:  # nan is not, either
                raise UserError(f"{key}={shown(value)} is not possible: give a finite number.")
            return float(value)
        if typing.get_origin(option) is list:
            (item,) = typing.get_args(option)
            if isinstance(value, list) and all(type(part) is item for part in value):
                for part in value:
                    checked(key, part, item)
                return value
        elif type(value) is (typing.get_origin(option) or option):
            if option is int and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise UserError(f"{key}={shown(value)} is not possible: the largest whole number is {LARGEST_INTEGER}.")
            if isinstance(value, str) and "\0" in value:
                raise UserError(f"{key}={shown(value)} is not possible: it contains a NUL byte.")
            return value
    hint_of_path = f" (a folder of that name: {key}=./{value})" if key.endswith("_root") and value is not None else ""
    quoted = " without quotes" if isinstance(value, str) and _is_number(value) else ""
    raise UserError(
        f"{key}={shown(value)} is not possible: give {' or '.join(map(_described, options))}{quoted}{hint_of_path}."
    )


def _is_number(text: str) -> bool:
    try:
        return isinstance(float(text), float)
    except ValueError:
        return False


def _described(hint: Any) -> str:
    descriptions = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        types.NoneType: "null",
        list[int]: "a list of whole numbers such as [500]",
        list[str]: "a list of strings such as [my_module]",
    }
    return descriptions.get(hint, "a group of settings")


def call_builder(kind: str, table: Mapping[str, Callable[..., Any]], choice: Mapping[str, Any], *args: Any) -> Any:
    """Call the builder named in a config, from an allow-list, so that a config cannot name arbitrary code.

    Args:
        kind: the group's name (``optimizer``, ``model``), for errors.
        table: the allow-list, name -> builder with keyword-only settings.
        choice: ``name`` and the builder's settings.
        *args: the builder's positional arguments.

    Returns:
        What the builder returns.

    Raises:
        UserError: unknown name; unknown, missing or mistyped setting; or a value that the builder refuses.
    """
    builder = known_builder(kind, table, choice)
    hints = typing.get_type_hints(builder)
    settings = [p for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    names = [p.name for p in settings]
    given = {key: value for key, value in choice.items() if key != "name"}
    refuse_unknown(f"{kind}.", given, names)
    for setting in settings:
        if setting.name not in given and setting.default is setting.empty:
            raise UserError(f"The setting {kind}.{setting.name} is missing: give {kind}.{setting.name}=...")
    values = {name: checked(f"{kind}.{name}", value, hints[name]) for name, value in given.items()}
    try:
        return builder(*args, **values)
    except ValueError as error:
        raise UserError(f"{kind}={choice['name']} cannot be built: {error}") from error


def known_builder(kind: str, table: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    """Look up the entry named in a config.

    Args:
        kind: the group's name, for the error.
        table: the allow-list.
        choice: with ``name``.

    Returns:
        The table's entry.

    Raises:
        UserError: the name is not in the table; lists those that are.
    """
    name = str(choice.get("name"))
    if not is_known(table, name):
        raise UserError(f"There is no {kind} {name!r}; choose one of: {', '.join(table)}.")
    return table[name]


def is_known(table: Mapping[str, Any], name: str) -> bool:
    """Whether a name is in an allow-list, after importing the plugins of installed packages if necessary.

    Args:
        table: the allow-list.
        name: from a config.

    Returns:
        True if so.

    Raises:
        UserError: the name is unknown, and an installed plugin that might register it cannot be imported.
    """
    if name not in table:
        from sibp.experiment.plugins import load_installed

        load_installed()
    return name in table


def register(kind: str, table: dict[str, Any], name: str, entry: Any) -> None:
    """Add a plugin's entry to an allow-list.

    Args:
        kind: the group's name, for the error.
        table: the allow-list.
        name: by which configs refer to the entry.
        entry: the table's entry; the same one may be registered again.

    Raises:
        ValueError: the name is taken.
    """
    if table.get(name, entry) != entry:
        raise ValueError(f"{kind} {name!r} is already registered: choose another name")
    table[name] = entry
