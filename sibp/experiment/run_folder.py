"""A run's folder: named by its settings, locked by its owner, written so that a crash loses nothing kept."""

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from sibp.experiment.errors import UserError

# What says where and how a run is done and looked at, not what is trained: it has no part in the run's name.
NOT_IN_NAME = (
    "run_root",
    "data_root",
    "device",
    "threads",
    "download",
    "force",
    "progress",
    "tensorboard",
    "histograms",
    "checkpoint_every",
    "evaluate_test",  # a run without test figures is the same training; asked for later, they are added
)
# Settings that came after the first kept runs: at these values they have no part in the name, so runs keep theirs.
LATER = {"schedule": "constant", "decays": "lr", "warmup_steps": 0, "label_noise": 0, "plugins": []}
LATER_OF_MODEL = {"mlp": {"activation": "relu"}}  # likewise, by the model's name
FINISHED = ("completed", "diverged")
ANEW = "force=true trains the run anew, and deletes what is there."


class BusyError(Exception):
    """Another process is training this very run."""


class RunFolder:
    """The files of one run.

    config.yaml    the resolved settings
    metrics.jsonl  one object a logged step; the source of truth
    summary.json   how the run ended; absent while it goes on
    checkpoint.pt  all that the next process needs to go on from here
    tb/            TensorBoard's copy of the metrics
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)
        self.path = Path(str(config["run_root"])) / run_name(config)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.board = self.path / "tb"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; made if absent.

        The kernel drops the lock when its owner dies, however it dies, so no lock is ever stale.

        Yields:
            Nothing.

        Raises:
            BusyError: another process holds it; names the process.
            UserError: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - closed below, whatever happens
        except OSError as error:
            raise UserError(
                f"The run folder {self.path} cannot be made ({error.filename}: {error.strerror}): set "
                "run_root=... to a folder that can be written to."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise BusyError(f"{self.path.name} is being trained by {lock.read() or 'another process'}") from None
            with suppress(OSError):  # the name is a courtesy: even on a full disk a finished run is to be skipped
                os.truncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield

    def summary(self) -> dict[str, Any] | None:
        """What summary.json says.

        Returns:
            Its content, or None where the run has not ended or the file is no summary.
        """
        try:
            summary = json.loads((self.path / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) else None

    def is_finished(self) -> bool:
        """Whether the run ended in a result, be it a divergence."""
        return (self.summary() or {}).get("status") in FINISHED

    def write_config(self) -> None:
        """Write config.yaml."""
        write_atomic(self.path / "config.yaml", yaml.safe_dump(self.config).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, all of it or nothing.

        Args:
            summary: numbers, strings, lists and mappings; numbers that are not finite become null.
        """
        text = json.dumps(finite(summary), indent=2, allow_nan=False) + "\n"
        write_atomic(self.path / "summary.json", text.encode())

    def forget_end(self) -> None:
        """Delete summary.json: the run goes on."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete what an earlier attempt left, but for config and lock."""
        # In this order whoever is killed on the way leaves the old run, or one that starts anew; never a damaged one.
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
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except ValueError as error:
            raise UserError(f"{self.metrics} is damaged ({error}): {ANEW}") from error

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl.

        Args:
            row: numbers that are not finite become null.
        """
        with self.metrics.open("a") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace checkpoint.pt, with the place in metrics.jsonl that it belongs to.

        Args:
            state: tensors, numbers, strings, and lists and mappings of these.
        """
        with self.metrics.open("rb+") as file:
            os.fsync(file.fileno())  # a checkpoint must never be ahead of its rows
            rows = file.read()
        state = {**state, "metrics_bytes": len(rows), "metrics_sha256": hashlib.sha256(rows).hexdigest()}
        archive = io.BytesIO()  # torch's own writing to a file does not say why it failed
        torch.save(state, archive)
        write_atomic(self.checkpoint, archive.getbuffer())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read checkpoint.pt and cut metrics.jsonl back to the moment it was written.

        Returns:
            The saved state, tensors on the CPU, or None where there is no checkpoint.

        Raises:
            UserError: the checkpoint or the metrics are damaged.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = _read_archive(self.checkpoint)
            length, digest = state["metrics_bytes"], state.get("metrics_sha256")
        except Exception as error:  # a damaged archive fails in many ways
            raise UserError(f"{self.checkpoint} is damaged ({type(error).__name__}): {ANEW}") from error
        rows = self.metrics.read_bytes()[:length] if self.metrics.exists() else b""
        if len(rows) < length:
            raise UserError(f"{self.metrics} has lost lines that its checkpoint counts on: {ANEW}")
        if digest not in (None, hashlib.sha256(rows).hexdigest()):  # None: written before there were digests
            raise UserError(f"{self.metrics} is damaged (its lines are not those of its checkpoint): {ANEW}")
        os.truncate(self.metrics, length)
        return state


def run_name(config: Mapping[str, Any]) -> str:
    """The folder's name: what a person wants to read, then a hash that tells apart all the rest.

    Args:
        config: the resolved settings.

    Returns:
        Such as ``mnist-mlp500-sibp-lr0.3-s0-1f0c2a9b3d``.
    """
    as_ever = [key for key, value in LATER.items() if config.get(key) == value]
    named = {key: value for key, value in config.items() if key not in (*NOT_IN_NAME, *as_ever)}
    dataset, model, optimizer = (config.get(group) or {} for group in ("dataset", "model", "optimizer"))
    later = LATER_OF_MODEL.get(str(model.get("name")), {})
    named["model"] = {key: value for key, value in model.items() if key not in later or later[key] != value}
    text = json.dumps(_canonical(named), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    widths = "x".join(map(str, model.get("hidden", []))) if isinstance(model.get("hidden"), list) else ""
    parts = [
        dataset.get("name"),
        f"{model.get('name')}{widths}",
        optimizer.get("name"),
        f"lr{optimizer.get('lr')}",
        f"s{config.get('seed')}",
    ]
    readable = "-".join(map(str, parts))
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in readable)[:80] + "-" + digest


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that whoever reads it finds the old content or the new, never a part.

    Args:
        path: the file.
        content: its new content.

    Raises:
        OSError: it cannot be written; the old content is still there.
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
            new.unlink(missing_ok=True)  # on a full disk, half a file is in the way of everything else
        raise


def _read_archive(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; torch's own reader passes over a wrong byte in a tensor."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def finite(value: Any) -> Any:
    """The same value in strict JSON's terms: numbers that are not finite become None.

    Args:
        value: numbers, strings, None, and lists and mappings of these.

    Returns:
        A copy.
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _canonical(value: Any) -> Any:
    """1 and 1.0 are the same setting, so they must have the same hash."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
