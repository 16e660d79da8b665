"""A run's folder: named after its settings, locked by its owner, and safe against crashes."""

import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sibp.runs.errors import UserError
from sibp.runs.identity import digest, run_name
from sibp.runs.reading import (
    MAX_METRICS,
    MAX_SUMMARY,
    checked_row,
    checked_summary,
    first_line,
    read_config,
    read_rows,
    read_summary,
    read_text,
    run_of,
)
from sibp.runs.values import BrokenError, number_or_nan, shown
from sibp.runs.yaml_file import yaml_text

FINISHED = ("completed", "diverged")
WHOLE = {"steps": int, "final": dict, "seconds": dict}  # entries of every completed run's summary
NUMBERS = {"final": "train_loss", "seconds": "train"}  # entries of these entries that are numbers
AGAIN = "force=true trains the run again, and deletes what is there."


def resuming(config: Mapping[str, Any]) -> str:
    """How a message names the command that resumes a run, since the same command with ``force=true`` begins again.

    Args:
        config: of the run, or of one run of the command.
    """
    return f"the same command{' without force=true' if config.get('force') is True else ''}"


class BusyError(Exception):
    """Another process is training this run."""


class RunFolder:
    """The files of one run.

    config.yaml    the resolved settings
    metrics.jsonl  one object per logged step; the source of truth
    summary.json   how the run ended; absent while it is running
    checkpoint.pt  everything needed to resume
    tb/            TensorBoard's copy of the metrics
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)
        self.path = _place(config)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.board = self.path / "tb"

    def check_place(self) -> None:
        """Check that the folder can be created, without creating it.

        Raises:
            UserError: it cannot.
        """
        root = self.path.parent
        above, reason, exists = Path("/"), None, False
        try:
            os.fsencode(self.path)
            exists = self.path.exists()
            above = next((place for place in (root, *root.absolute().parents) if place.exists()), above)
        except (OSError, ValueError) as error:  # too long a name, or invalid characters
            reason = getattr(error, "strerror", None) or "no file can have that name"
        if reason is None and not above.is_dir():
            reason = "Not a directory"
        if reason is None and not exists and not os.access(above, os.W_OK | os.X_OK):
            reason = "it cannot be written to"
        if reason is not None:
            raise UserError(
                f"run_root={shown(str(root))} cannot be used ({above}: {reason}): give a folder that can be written."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process, creating it if necessary.

        The kernel releases the lock when its owner dies, so no lock is ever stale.

        Yields:
            Nothing.

        Raises:
            BusyError: another process holds it; names the process.
            UserError: the folder cannot be created, or something in it is not a regular file.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_files()
            lock = open(self.path / ".lock", "a+", errors="replace")  # noqa: SIM115 - closed below, whatever happens
        except OSError as error:
            raise UserError(
                f"The run folder {self.path} cannot be made ({error.filename}: {error.strerror}): set "
                "run_root=... to a folder that can be written to."
            ) from error
        with lock:
            if not _acquire(lock):
                lock.seek(0)
                raise BusyError(f"{self.path.name} is being trained by {shown(lock.read(200)) or 'another process'}")
            with suppress(OSError):  # optional: even on a full disk a finished run is skipped
                os.truncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield

    def _check_files(self) -> None:
        """Refuse pipes and links to devices, which would block or never end when read."""
        for path in (self.path / ".lock", self.metrics, self.checkpoint):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file, and a run needs one there: delete it.")

    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None if the run has not ended or the file is not a summary."""
        try:
            summary = checked_summary(json.loads(read_text(self.path / "summary.json", MAX_SUMMARY) or ""))
        except (ValueError, RecursionError, BrokenError):
            return None
        whole = all(isinstance(summary.get(key), kind) for key, kind in WHOLE.items())
        whole = whole and not any(math.isnan(number_or_nan(summary[key].get(part))) for key, part in NUMBERS.items())
        return summary if whole or summary["status"] != "completed" else None

    def is_finished(self) -> bool:
        """Whether the run ended with a result, which includes divergence."""
        return (self.summary() or {}).get("status") in FINISHED

    def damage(self) -> str | None:
        """Why a report cannot use the finished run, whose config.yaml can be written again; None if it can."""
        try:
            summary, (rows, notes) = read_summary(self.path / "summary.json"), read_rows(self.metrics)
            run = run_of(self.path, self.config, summary, rows, notes)
        except BrokenError as error:
            return str(error)
        return None if run.status in FINISHED else run.notes[-1]

    def repair_config(self) -> None:
        """Write config.yaml again if it is missing or damaged."""
        try:
            read_config(self.path / "config.yaml")
        except BrokenError:
            self.write_config()

    def write_config(self) -> None:
        """Write config.yaml."""
        write_atomic(self.path / "config.yaml", yaml_text(self.config).encode("utf-8", "backslashreplace"))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json atomically.

        Args:
            summary: numbers, strings, lists and mappings; non-finite numbers become null.
        """
        text = json.dumps(finite(summary), indent=2, allow_nan=False) + "\n"
        write_atomic(self.path / "summary.json", text.encode())

    def forget_end(self) -> None:
        """Delete summary.json, since the run continues."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the files of an earlier attempt, except config and lock."""
        # In this order, a process killed in between leaves the old run or one that starts again, never a damaged one.
        self.forget_end()
        for path in (self.checkpoint, self.metrics):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.board, ignore_errors=True)

    def rows(self) -> list[dict[str, Any]]:
        """The logged rows, in order.

        Returns:
            One mapping for each line of metrics.jsonl.

        Raises:
            UserError: a line is damaged.
        """
        if not self.metrics.exists():
            return []
        try:
            rows = [json.loads(line) for line in (read_text(self.metrics, MAX_METRICS) or "").splitlines()]
            for i, row in enumerate(rows):
                checked_row(row, rows[i - 1] if i else None)
        except (ValueError, RecursionError, BrokenError) as error:
            raise UserError(f"{self.metrics} is damaged ({first_line(error)}): {AGAIN}") from error
        return rows

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl.

        Args:
            row: non-finite numbers become null.
        """
        with self.metrics.open("a") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")


def _acquire(lock: IO[str]) -> bool:
    """Lock a file; retries briefly, since another process may be checking the lock."""
    for pause in (0.005, 0.02, 0.05, None):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause is not None:
                time.sleep(pause)
        else:
            return True
    return False


def _place(config: Mapping[str, Any]) -> Path:
    """The run's folder; one that an earlier version named differently before the digest is kept."""
    root, name = Path(str(config["run_root"])), run_name(config)
    with suppress(OSError, ValueError):  # an impossible folder, which check_place reports
        if not (root / name).exists():
            name = min((path.name for path in root.glob(f"*-{digest(config)}")), default=name)
    return root / name


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: readers see the old content or the new, never a part.

    Args:
        path: the file.
        content: its new content.

    Raises:
        OSError: it cannot be written; the old content is kept.
    """
    new = path.with_name(path.name + ".tmp")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)  # on a full disk, half a file takes space that others need
        raise


def finite(value: Any) -> Any:
    """A copy of a value for strict JSON: non-finite numbers become None.

    Args:
        value: numbers, strings, None, and lists and mappings of these.
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
