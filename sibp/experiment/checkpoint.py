"""Checkpoints: everything needed to resume, and the corresponding position in metrics.jsonl."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from sibp.runs.errors import UserError
from sibp.runs.folder import AGAIN, RunFolder, write_atomic


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
    archive = io.BytesIO()  # torch's own file writer does not say why it failed
    torch.save(state, archive)
    write_atomic(folder.checkpoint, archive.getbuffer())


def load_checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    """Read checkpoint.pt and truncate metrics.jsonl to the time it was written.

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
        raise UserError(f"{folder.metrics} has lost lines that its checkpoint counts on: {AGAIN}")
    if digest not in (None, hashlib.sha256(rows).hexdigest()):  # None: written before digests existed
        raise UserError(f"{folder.metrics} is damaged (its lines are not those of its checkpoint): {AGAIN}")
    if folder.metrics.exists() and folder.metrics.stat().st_size > length:
        os.truncate(folder.metrics, length)
    return state


def _read_archive(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; torch's own reader passes over a wrong byte in a tensor."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)
