"""TensorBoard's copy of a run; metrics.jsonl remains the source of truth.

A run has one event file in one folder, so TensorBoard shows it as one run, named after its folder. When a run is
resumed, the file is rewritten from metrics.jsonl, so a curve never jumps back; older files are emptied.

An event's timestamp is the run's start plus its training seconds: TensorBoard's axis "relative" shows curves against
training time, without evaluation and interruptions.
"""

# pyright: reportAttributeAccessIssue=false
# Protocol buffer classes are created at import, invisible to pyright.

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.tensorboard import summary as summaries

from sibp.experiment.board_tables import FINAL, curves, head, session_end

WEIGHTS, SAMPLE = "weights/", "sample"


class Board:
    """Writes the event file of one run.

    Args:
        folder: where it goes; what files there hold is replaced.
        config: the run's settings.
        rows: those of metrics.jsonl.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]):
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob("events.out.tfevents.*"))
        kept = list(_events(old))
        self._started = kept[0].wall_time if kept else time.time()
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
        self._records = RecordWriter(self._file)
        self._before: Mapping[str, Any] | None = None
        self._write(Event(wall_time=self._started, file_version="brain.Event:2"))
        # A running TensorBoard then drops what it has read from the old file.
        self._write(Event(wall_time=self._started, session_log=SessionLog(status=SessionLog.START)))
        for summary in head(config):
            self._add(summary, step=0, seconds=0.0)
        for row in rows:
            self.add(row)
        if rows:
            for event in _in_no_other_file(kept, rows[-1]["step"]):
                self._write(event)
        self.flush()
        for path in old:
            os.truncate(path, 0)  # not deleted: a TensorBoard that is reading it would look for no other file

    def add(self, row: Mapping[str, Any]) -> None:
        """Log one row of metrics.jsonl.

        Args:
            row: as written there.
        """
        for tag, step, value in curves(row, self._before):
            self._scalar(tag, value, step, row["seconds"])
        self._before = row

    def add_weights(self, model: nn.Module, row: Mapping[str, Any]) -> None:
        """Log a histogram of every parameter; of one that is not finite there is none.

        Args:
            model: whose parameters.
            row: the row logged at the same step.
        """
        for name, parameter in model.named_parameters():
            values = parameter.detach().float().cpu()
            if torch.isfinite(values).all():
                tag = WEIGHTS + name.replace(".", "/")
                self._add(summaries.histogram(tag, values.numpy(), bins=64), row["step"], row["seconds"])

    def add_sample(self, text: str, row: Mapping[str, Any]) -> None:
        """Log text that a language model has written.

        Args:
            text: any; shown as it is.
            row: the row logged at the same step.
        """
        shown = "".join(f"    {line}\n" for line in text.split("\n"))  # Markdown's code block
        self._add(summaries.text(SAMPLE, shown), row["step"], row["seconds"])

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log how the run ended: its final metrics, and its row in the table of hyper-parameters.

        Args:
            summary: that of summary.json.
        """
        metrics = {**summary, **summary.get("final", {})}
        step, seconds = summary["steps"], summary.get("final", {}).get("seconds", 0.0)
        for key in FINAL:
            if metrics.get(key) is not None:
                self._scalar(f"final/{key}", metrics[key], step, seconds)
        ending = f"{summary['status']}: {summary['reason']}" if summary["reason"] else summary["status"]
        self._add(summaries.text("ending", ending), step, seconds)
        self._add(session_end(summary["status"]), step, seconds)

    def flush(self) -> None:
        """Bring everything logged to the file."""
        self._records.flush()

    def close(self) -> None:
        """Close the event file."""
        self._records.close()

    def _scalar(self, tag: str, value: float, step: int, seconds: float) -> None:
        self._add(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step, seconds)

    def _add(self, summary: Summary, step: int, seconds: float) -> None:
        self._write(Event(wall_time=self._started + seconds, step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def _events(files: Sequence[Path]) -> Iterator[Event]:
    """The events of some files; one that was cut off is read up to there."""
    for path in files:
        for record in RawEventFileLoader(str(path)).Load():
            yield Event.FromString(record)


def _in_no_other_file(events: Sequence[Event], last_step: int) -> list[Event]:
    """The histograms and samples up to a step, each once."""
    found = {
        (event.summary.value[0].tag, event.step): event
        for event in events
        if event.step <= last_step and event.summary.value and event.summary.value[0].tag.startswith((WEIGHTS, SAMPLE))
    }
    return list(found.values())
