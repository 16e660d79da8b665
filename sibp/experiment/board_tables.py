"""What TensorBoard is shown of a run: names of curves, the layout of charts, the table of hyper-parameters."""

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import summary as summaries

from sibp.experiment.data import DATASETS
from sibp.experiment.models import MODELS
from sibp.experiment.optimizers import OPTIMIZERS
from sibp.experiment.run_folder import NOT_IN_NAME
from sibp.experiment.settings import Settings

QUANTITIES = {"loss": "loss", "accuracy": "acc"}
PARTS = ("train", "val")
OVER_TIME = "_over_training_ms"  # TensorBoard's horizontal axes know whole steps alone
FINAL = ("train_loss", "val_loss", "val_acc", "test_loss", "test_acc", "seconds", "steps_to_target")


def curves(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[tuple[str, int, float]]:
    """The points that a row adds to the curves.

    Args:
        row: of metrics.jsonl.
        before: the row before it; None at the first.

    Yields:
        Tag, step and value; the step of a curve over time is the milliseconds trained.
    """
    step, milliseconds = row["step"], round(1000 * row["seconds"])
    for quantity, key in QUANTITIES.items():
        for part in PARTS:
            value = row[f"{part}_{key}"]
            if value is not None:  # as a figure that is not finite reads in metrics.jsonl
                yield f"{quantity}/{part}", step, value
                yield f"{quantity}{OVER_TIME}/{part}", milliseconds, value
    if before is not None:
        yield "time/seconds_per_step", step, (row["seconds"] - before["seconds"]) / (step - before["step"])
    for layer, stats in row.get("solver", {}).items():
        for key, value in stats.items():
            if isinstance(value, int | float):
                yield f"solver/{layer}/{key}", step, value


def head(config: Mapping[str, Any]) -> list[Summary]:
    """What stands at the start of an event file: config, layout and hyper-parameters.

    Args:
        config: the run's settings.

    Returns:
        The summaries, for step 0.
    """
    text = "".join(f"    {line}\n" for line in yaml.safe_dump(dict(config)).splitlines())  # Markdown's code block
    layout = {
        title: {quantity: ["Multiline", [f"^{quantity}{suffix}/{part}$" for part in PARTS]] for quantity in QUANTITIES}
        for title, suffix in (("Against steps", ""), ("Against training milliseconds", OVER_TIME))
    }
    metrics = {f"final/{key}": 0.0 for key in FINAL}
    # The table's columns are those of the first run that TensorBoard comes across, so every run names all of them.
    columns, _, _ = summaries.hparams(_columns(), metrics)
    _, session_start, _ = summaries.hparams(_row(config), metrics)
    return [columns, session_start, summaries.custom_scalars(layout), summaries.text("config", text)]


def session_end() -> Summary:
    """The last of the three summaries that make a line of the table; SummaryWriter.add_hparams makes runs of its own.

    Returns:
        The summary.
    """
    return summaries.hparams({}, {})[2]


def _row(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's line in the table: every setting that has a part in its result and is not null."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in NOT_IN_NAME:
            continue
        if isinstance(value, Mapping):
            flat |= {key if name == "name" else f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in flat.items()
        if value is not None
    }


def _columns() -> dict[str, Any]:
    """Every setting that any run can have, each with a value of its type."""
    columns: dict[str, Any] = {"model.init": "", "model.init_std": 0.0}
    for name, hint in typing.get_type_hints(Settings).items():
        if name not in NOT_IN_NAME:
            columns[name] = _example(hint)
    models = {name: spec.build for name, spec in MODELS.items()}
    for kind, table in (("dataset", DATASETS), ("model", models), ("optimizer", OPTIMIZERS)):
        for builder in table.values():
            hints = typing.get_type_hints(builder)
            for parameter in inspect.signature(builder).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    columns[f"{kind}.{parameter.name}"] = _example(hints[parameter.name])
    return columns


def _example(hint: Any) -> Any:
    plain = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    return plain() if plain in (int, float, bool, str) else ""
