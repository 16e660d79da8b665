"""Records of measurements: the machine, the JSON file, and the pages made from it."""

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sibp.bench.bars import Bars, save_bars
from sibp.experiment.environment import describe
from sibp.report.blocks import Document, Section, Table, Text
from sibp.report.cells import cell_text, is_number
from sibp.report.markdown import markdown
from sibp.report.pictures import save_pictures
from sibp.runs.errors import UserError

_BUSY = 0.1  # cores
Sections = Callable[[dict[str, Any]], list[Section]]
"""Makes a record's tables and pictures."""


def machine(device: str) -> dict[str, Any]:
    """The machine of a measurement.

    Args:
        device: "cpu" or "cuda".

    Returns:
        Processor, cores, load average of the last minute before the measurement, threads, device, kernels, system,
        versions and git state.
    """
    found = describe(torch.device(device))
    kept = ("processor", "load", "system", "cpus", "threads", "device")
    kept += ("kernels", "versions", "git_commit", "git_dirty")
    return {key: found[key] for key in kept}


def new_record(command: str, arguments: Sequence[str], device: str) -> dict[str, Any]:
    """The head of a record, to which a command adds its measurements.

    Args:
        command: such as "step".
        arguments: of its command line.
        device: "cpu" or "cuda".

    Returns:
        The head.
    """
    return {
        "command": command,
        "made_by": shlex.join(["python", "-m", "sibp.bench", *arguments]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(device),
    }


class Usage:
    """Processor time used by other processes from now on."""

    def __init__(self) -> None:
        self._start = self._read()

    def others(self) -> float | None:
        """Mean number of cores that other processes kept busy since then; None if unknown."""
        if self._start is None or (now := self._read()) is None:
            return None
        everyone, own, wall = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, (everyone - own) / wall)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds of processor time of all processes and of this one with its children, and wall-clock seconds."""
        try:
            user, nice, system, _, _, irq, soft, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return busy, sum(os.times()[:4]), time.perf_counter()


def file_name(record: Mapping[str, Any]) -> str:
    """The file's name, different for each command, device and number of threads.

    Args:
        record: complete or not.

    Returns:
        Such as ``step-cpu-2threads``.
    """
    if record["command"] == "time_to_target":
        return "time_to_target"  # its seconds are those of the runs
    about = record["machine"]
    where = f"cpu-{about['threads']}thread{'s' * (about['threads'] > 1)}" if about["device"] == "cpu" else "cuda"
    return f"{record['command']}-{where}"


def check_folder(folder: Path) -> None:
    """Check, before anything is measured, that results can be written.

    Args:
        folder: need not exist.

    Raises:
        UserError: it can be neither created nor written.
    """
    try:
        above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        reason = None if above.is_dir() else f"{above} is not a folder"
        reason = reason or (None if os.access(above, os.W_OK | os.X_OK) else f"{above} cannot be written to")
    except OSError as error:  # too long a name
        reason = error.strerror
    if reason:
        raise UserError(f"The results cannot be written to {folder} ({reason}): give another --out.")


def save(
    record: dict[str, Any], folder: Path, makers: Mapping[str, Sections], headline: Callable[[dict[str, Any]], str]
) -> list[Path]:
    """Write a record and its picture, and rewrite README.md for all records in the folder.

    Args:
        record: the measurement; it replaces an earlier one of the same name.
        folder: is created if missing.
        makers: command -> function that makes its sections.
        headline: one sentence about a record of ``step``, with which README.md begins.

    Returns:
        The files.

    Raises:
        UserError: they cannot be written, or the folder holds a JSON file that is not a record.
    """
    path = folder / f"{file_name(record)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        pictures = _save_pictures(makers[record["command"]](record), path.with_suffix(""))
        readme, kept_files = folder / "README.md", sorted(folder.glob("*.json"))
        parts = [_part(kept, makers) for kept in kept_files]
        readme.write_text("\n".join(["# Benchmark\n", *_first_section(folder, headline), *parts]))
    except OSError as error:
        raise UserError(f"The results cannot be written to {folder} ({error.strerror}): give another --out.") from error
    return [path, *pictures, readme]


def shown(sections: Sequence[Section]) -> str:
    """Sections as text for a terminal.

    Args:
        sections: tables and texts; pictures are left out.

    Returns:
        Lines, with aligned columns.
    """
    parts = []
    for section in sections:
        parts.append(f"{section.title}\n{'=' * len(section.title)}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(block.text)
            elif isinstance(block, Table):
                parts.append(f"{block.title}\n{_aligned(block)}")
    return "\n\n".join(parts)


def _aligned(table: Table) -> str:
    rows = [list(table.columns), *([cell_text(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(cell is None or is_number(cell) for cell in column) for column in zip(*table.rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )


def _save_pictures(sections: Sequence[Section], prefix: Path) -> list[Path]:
    plain = [replace(part, blocks=[b for b in part.blocks if not isinstance(b, Bars)]) for part in sections]
    written = save_pictures(Document("", plain), prefix, "png")
    for block in (block for part in sections for block in part.blocks if isinstance(block, Bars)):
        written.append(prefix.with_name(f"{prefix.name}-{block.name}.png"))
        save_bars(block, written[-1])
    return written


def _first_section(folder: Path, headline: Callable[[dict[str, Any]], str]) -> list[str]:
    """The picture and headline of the ``step`` record with the most nets; of several such records, the latest."""
    records = [(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("step-*.json"))]
    if not records:
        return []
    stem, record = max(records, key=lambda found: (len(found[1]["cases"]), found[1]["date"]))
    return [f"![Time of a step against SGD's]({stem}-ratios.png)\n", f"{headline(record)}\n"]


def _part(path: Path, makers: Mapping[str, Sections]) -> str:
    """A record's part of README.md."""
    try:
        record = json.loads(path.read_text())
        sections = makers[record["command"]](record)
        where = f"{record['date']}, {machine_line(record['machine'])}. All values: {path.name}."
        head = Section("How it was measured", [Text(f"Made by: {record['made_by']}"), Text(where), *warnings(record)])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record of this command: move it away, or give another --out.") from error
    document = Document(path.stem.replace("-", ", "), [head, *sections])
    return "#" + markdown(document, path.parent, path.stem, "png")  # one heading level down


def warnings(record: Mapping[str, Any]) -> list[Text]:
    """Warnings about timings.

    Args:
        record: its ``others`` is the mean number of cores that other processes kept busy meanwhile.

    Returns:
        A warning if other processes were running.
    """
    others = record.get("others")
    if record["command"] == "time_to_target" or others is None or others < _BUSY:
        return []
    text = (
        f"Other processes kept {others:.1f} cores busy during the measurement: times are too long, and ratios with "
        "several threads are unreliable."
    )
    return [Text(text, warning=True)]


def machine_line(about: Mapping[str, Any]) -> str:
    """The machine in one line.

    Args:
        about: from `machine`.

    Returns:
        One line without a full stop.
    """
    commit = str(about["git_commit"] or "unknown")[:10] + (" with changes" if about["git_dirty"] else "")
    device = "" if about["device"] == "cpu" else f"{about['device']}, "
    compiled = f"kernels {about['kernels']}, " if "kernels" in about else ""  # absent in early records
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    load = f"load {about['load']:g}, " if about.get("load") is not None else ""
    return (
        f"{device}{about['processor']}, {about['cpus']} cores, {load}{threads}, "
        f"{compiled}torch {about['versions']['torch']}, commit {commit}"
    )
