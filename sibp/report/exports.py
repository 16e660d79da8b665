"""The report for other programs: tables as CSV, and medians over seeds as runs for TensorBoard."""

import csv
import io
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sibp.analysis.statistics import Estimate
from sibp.report.blocks import Cell, Document, Figure, Line, Table
from sibp.report.cells import relative
from sibp.report.curves import SECONDS
from sibp.runs.folder import write_atomic

LONGEST_NAME = 200  # characters of a file name; a file system allows 255 bytes
TAGS = {"train loss": "loss/train", "val loss": "loss/val", "val acc": "accuracy/val"}
"""Title of a curve -> the tag of the same curve in a run's own event file."""


def csv_files(document: Document, folder: Path) -> dict[str, str]:
    """Name -> CSV with full precision; tables of the same name are merged, with a column for the section."""
    merged: defaultdict[str, list[dict[str, Cell]]] = defaultdict(list)
    for part, block in document.blocks():
        if isinstance(block, Table):
            columns = ("part", *block.columns)
            merged[block.name] += [_csv_row(columns, (part, *row), folder) for row in block.rows]
    return {name: lines_of_csv(rows) for name, rows in merged.items()}


def lines_of_csv(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Rows ``{column: cell}`` as CSV; a row may lack columns that others have."""
    file, columns = io.StringIO(), dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _csv_row(columns: Sequence[str], row: Sequence[Cell], folder: Path) -> dict[str, Cell]:
    """``{column: number or text}``; an estimate fills three columns: median, low and high."""
    found: dict[str, Cell] = {}
    for column, cell in zip(map(_guarded, columns), row, strict=True):
        if isinstance(cell, Estimate):
            found |= {column: cell.median, f"{column} (95 % low)": cell.low, f"{column} (95 % high)": cell.high}
        else:
            text = relative(cell, folder) if isinstance(cell, Path) else cell
            found[column] = _guarded(text) if isinstance(text, str) else text
    return found


def _guarded(text: str) -> str:
    """The text, quoted if a spreadsheet would read it as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_medians(document: Document, folder: Path) -> None:
    """Write an event file per method and problem, replacing earlier ones."""
    found: defaultdict[tuple[str, str], list[tuple[str, Line]]] = defaultdict(list)
    for part, block in document.blocks():
        if isinstance(block, Figure) and block.curves:
            for line in (line for line in block.lines if line.kind == "median"):
                found[part, f"{line.label} {line.detail}"].append((TAGS[block.title], line))
    taken: Counter[Path] = Counter()
    for (part, name), lines in found.items():
        place = folder / _file_name(part) / f"{_file_name(name)},_median"
        taken[place] += 1
        _write(place if taken[place] == 1 else place.with_name(f"{place.name}_{taken[place]}"), lines)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.,=:-]+", "_", text, flags=re.ASCII)[:LONGEST_NAME]


def _write(place: Path, lines: list[tuple[str, Line]]) -> None:
    """Every point twice: against steps, and against training milliseconds."""
    # A second to import. Classes of protocol buffers are created at import, invisible to pyright.
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter

    started, file = time.time(), io.BytesIO()
    records = RecordWriter(file)
    records.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
    for tag, line in lines:
        for step, seconds, value in zip(line.x, line.also[SECONDS], line.y, strict=True):
            if math.isfinite(value) and math.isfinite(seconds):
                for name, at in ((tag, int(step)), (f"over_training_ms/{tag}", round(1000 * seconds))):
                    summary = Summary(value=[Summary.Value(tag=name, simple_value=float(value))])
                    event = Event(wall_time=started + seconds, step=at, summary=summary)
                    records.write(event.SerializeToString())
    place.mkdir(parents=True, exist_ok=True)
    old = list(place.glob("events.out.tfevents.*"))
    write_atomic(place / f"events.out.tfevents.{time.time_ns()}", file.getvalue())
    for path in old:  # only now: the disk may be full
        path.unlink()
