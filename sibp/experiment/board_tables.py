"""A run in TensorBoard: names of curves, layout of charts, table of hyper-parameters."""

# pyright: reportAttributeAccessIssue=false
# Protocol buffer classes are created at import, invisible to pyright.

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import summary as summaries

from sibp.runs.identity import NOT_IN_NAME, essential

QUANTITIES = {"loss": "loss", "accuracy": "acc"}
PARTS = ("train", "val")
OVER_TIME = "over_training_ms/"  # in milliseconds, since TensorBoard's horizontal axis has only integer steps
OVER_TOKENS = "over_tokens/"
FINAL = ("train_loss", "val_loss", "val_acc", "test_loss", "test_acc", "seconds", "steps_to_target")


def curves(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[tuple[str, int, float]]:
    """The points that a row adds to the curves.

    Args:
        row: of metrics.jsonl.
        before: the row before it; None at the first.

    Yields:
        Tag, step and value. The step of a curve over time is in milliseconds of training, that of a curve over tokens
        is the number of tokens.
    """
    step, milliseconds = row["step"], round(1000 * row["seconds"])
    for quantity, key in QUANTITIES.items():
        for part in PARTS:
            value = row[f"{part}_{key}"]
            if value is not None:  # a non-finite value in metrics.jsonl
                yield f"{quantity}/{part}", step, value
                yield f"{OVER_TIME}{quantity}/{part}", milliseconds, value
                if "tokens" in row:
                    yield f"{OVER_TOKENS}{quantity}/{part}", row["tokens"], value
    if before is not None:
        yield "time/seconds_per_step", step, (row["seconds"] - before["seconds"]) / (step - before["step"])
    for key, value in row.get("search", {}).items():
        if isinstance(value, int | float):
            yield f"search/{key}", step, value
    for layer, stats in row.get("solver", {}).items():
        for key, value in stats.items():
            if isinstance(value, int | float):
                yield f"solver/{layer}/{key}", step, value


def head(config: Mapping[str, Any]) -> list[Summary]:
    """The start of an event file: hyper-parameters, layout of the charts, config.

    Args:
        config: the run's settings.

    Returns:
        The summaries, for step 0.
    """
    text = "".join(f"    {line}\n" for line in yaml.safe_dump(dict(config)).splitlines())  # Markdown's code block
    layout = {
        title: {
            f"{quantity}, {part}": ["Multiline", [f"^{prefix}{quantity}/{part}$"]]
            for quantity in QUANTITIES
            for part in PARTS
        }
        for title, prefix in (("Against steps", ""), ("Against training milliseconds", OVER_TIME))
    }
    line = HParamsPluginData(session_start_info=SessionStartInfo(hparams=_settings(config)))
    return [
        _line(metadata.SESSION_START_INFO_TAG, line),
        summaries.custom_scalars(layout),
        summaries.text("config", text),
    ]


def session_end(status: str) -> Summary:
    """The last part of the run's line in the table of hyper-parameters.

    Args:
        status: that of summary.json.

    Returns:
        The summary.
    """
    result = Status.Value("STATUS_SUCCESS" if status == "completed" else "STATUS_FAILURE")
    return _line(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=SessionEndInfo(status=result)))


def _settings(config: Mapping[str, Any]) -> dict[str, Value]:
    """A run's row in the table: every non-null setting that affects its result.

    An optimizer's settings at their defaults are omitted from those that people compare (`essential`).

    No run declares the columns (an "experiment" summary), since TensorBoard would use those of one run for all. Without
    it, the table shows the settings of all runs, those that differ first, and filters by the values that occur.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in (*NOT_IN_NAME, "plugins"):
            continue
        if isinstance(value, Mapping):
            value = essential(value) if key == "optimizer" else value
            flat |= {key if name == "name" else f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return {key: _value(value) for key, value in flat.items() if value is not None}


def _value(value: Any) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, int | float):
        return Value(number_value=value)
    return Value(string_value=str(value))


def _line(tag: str, part: HParamsPluginData) -> Summary:
    """A part of the run's line in the table; SummaryWriter.add_hparams would create a separate run for it."""
    content = metadata.create_summary_metadata(part)
    return Summary(value=[Summary.Value(tag=tag, metadata=content, tensor=metadata.NULL_TENSOR)])
