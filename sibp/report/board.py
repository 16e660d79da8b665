"""Medians over seeds for TensorBoard, as one run per method at its chosen setting."""

# pyright: reportAttributeAccessIssue=false
# Protocol buffer classes are created at import, invisible to pyright.

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from sibp.report.blocks import Document, Figure, Line
from sibp.report.curves import SECONDS, STEPS

TAGS = {"train loss": "loss/train", "val loss": "loss/val", "val acc": "accuracy/val"}
"""Title of a curve -> the tag of the same curve in a run's own event file."""


def write_medians(document: Document, folder: Path) -> None:
    """Write an event file per method and problem, replacing earlier ones."""
    found: dict[str, list[tuple[str, Line]]] = {}
    for part, block in document.blocks():
        if isinstance(block, Figure) and block.curves and block.title in TAGS:
            for line in (line for line in block.lines if line.kind == "median"):
                name = f"{part.title}/{line.label} {line.detail}, median"
                found.setdefault(re.sub(r"[^\w.,=:/-]+", "_", name), []).append((TAGS[block.title], line))
    for name, lines in found.items():
        _write(folder / name, lines)


def _write(place: Path, lines: list[tuple[str, Line]]) -> None:
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    started, writer = time.time(), EventFileWriter(str(place))
    for tag, line in lines:
        for name, step, seconds, value in _points(tag, line):
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=started + seconds, step=step, summary=summary))
    writer.close()


def _points(tag: str, line: Line) -> Iterator[tuple[str, int, float, float]]:
    """(tag, step, training seconds, value), against steps and against training milliseconds."""
    assert STEPS not in line.also
    for step, seconds, value in zip(line.x, line.also[SECONDS], line.y, strict=True):
        if math.isfinite(value) and math.isfinite(seconds):
            yield tag, int(step), seconds, float(value)
            yield f"over_training_ms/{tag}", round(1000 * seconds), seconds, float(value)
