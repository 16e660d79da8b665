"""Medians over seeds for TensorBoard, as one run per method at its chosen setting."""

# pyright: reportAttributeAccessIssue=false
# Protocol buffer classes are created at import, invisible to pyright.

import math
import re
import time
from collections import defaultdict
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from sibp.report.blocks import Document, Figure, Line
from sibp.report.curves import SECONDS

TAGS = {"train loss": "loss/train", "val loss": "loss/val", "val acc": "accuracy/val"}
"""Title of a curve -> the tag of the same curve in a run's own event file."""


def write_medians(document: Document, folder: Path) -> None:
    """Write an event file per method and problem, replacing earlier ones."""
    found: defaultdict[str, list[tuple[str, Line]]] = defaultdict(list)
    for part, block in document.blocks():
        if isinstance(block, Figure) and block.curves:
            for line in (line for line in block.lines if line.kind == "median"):
                name = f"{part}/{line.label} {line.detail}, median"
                found[re.sub(r"[^\w.,=:/-]+", "_", name)].append((TAGS[block.title], line))
    for name, lines in found.items():
        _write(folder / name, lines)


def _write(place: Path, lines: list[tuple[str, Line]]) -> None:
    """Every point twice: against steps, and against training milliseconds."""
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    started, writer = time.time(), EventFileWriter(str(place))
    for tag, line in lines:
        for step, seconds, value in zip(line.x, line.also[SECONDS], line.y, strict=True):
            if math.isfinite(value) and math.isfinite(seconds):
                for name, at in ((tag, int(step)), (f"over_training_ms/{tag}", round(1000 * seconds))):
                    summary = Summary(value=[Summary.Value(tag=name, simple_value=float(value))])
                    writer.add_event(Event(wall_time=started + seconds, step=at, summary=summary))
    writer.close()
