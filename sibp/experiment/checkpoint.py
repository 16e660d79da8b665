"""Checkpoints: everything needed to resume, and the corresponding position in metrics.jsonl."""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sibp.experiment.clock import BUCKETS
from sibp.runs.errors import UserError
from sibp.runs.folder import AGAIN, RunFolder, write_atomic
from sibp.runs.values import shown


def save_checkpoint(folder: RunFolder, state: dict[str, Any]) -> None:
    """Replace checkpoint.pt.

    Args:
        folder: of the run.
        state: tensors, numbers, strings, and lists and mappings of these.
    """
    with folder.metrics.open("rb+") as file:
        os.fsync(file.fileno())  # a checkpoint is never ahead of its rows
        rows = file.read()
    state = {**state, "metrics_bytes": len(rows), "metrics_sha256": hashlib.sha256(rows).hexdigest()}
    archive = io.BytesIO()  # torch's own file writer does not report the cause of a failure
    torch.save(state, archive)
    write_atomic(folder.checkpoint, archive.getbuffer())


def load_checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    """Read checkpoint.pt.

    Args:
        folder: of the run.

    Returns:
        The saved state, tensors on the CPU, or None without a checkpoint.

    Raises:
        UserError: the checkpoint or the metrics are damaged.
    """
    if not folder.checkpoint.exists():
        return None
    try:
        state = _read_archive(folder.checkpoint)
        length, digest = state["metrics_bytes"], state.get("metrics_sha256")
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"{folder.checkpoint} is damaged ({type(error).__name__}): {AGAIN}") from error
    rows = folder.metrics.read_bytes()[:length] if folder.metrics.exists() else b""
    if len(rows) < length:
        raise UserError(f"{folder.metrics} has lost lines that its checkpoint refers to: {AGAIN}")
    if digest not in (None, hashlib.sha256(rows).hexdigest()):  # None: written before digests existed
        raise UserError(f"{folder.metrics} is damaged (its lines are not those of its checkpoint): {AGAIN}")
    return state


def drop_later_rows(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Truncate metrics.jsonl to the time a checkpoint was written.

    Args:
        folder: of the run.
        state: from `load_checkpoint`.
    """
    if folder.metrics.exists() and folder.metrics.stat().st_size > state["metrics_bytes"]:
        os.truncate(folder.metrics, state["metrics_bytes"])


def checked_position(state: Mapping[str, Any], total: int) -> tuple[int, dict[str, float]]:
    """Where a checkpoint stands in its run.

    Args:
        state: from `load_checkpoint`.
        total: steps of the whole run.

    Returns:
        Its step, and the seconds so far.

    Raises:
        ValueError: the step is outside the run, or a time is negative or not finite.
    """
    step, seconds = state["step"], {bucket: float(state["seconds"][bucket]) for bucket in BUCKETS}
    if type(step) is not int or not 0 <= step <= total:
        raise ValueError(f"its step {shown(step)} is not from 0 to {total}")
    if not all(0 <= value < math.inf for value in seconds.values()):
        raise ValueError("its seconds are negative or not finite")
    return step, seconds


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state; refuse a state that lacks settings of this optimizer, which torch would accept.

    Args:
        optimizer: new.
        state: of a checkpoint.

    Raises:
        ValueError: it lacks settings of this optimizer.
    """
    needed = [set(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for keys, group in zip(needed, optimizer.param_groups, strict=True):
        if missing := keys - set(group):
            raise ValueError(f"its optimizer has no {min(missing)}")


def _read_archive(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, after a check of its bytes; torch's own reader ignores a wrong byte in a tensor."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)
