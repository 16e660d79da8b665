"""The state of a command's runs, read from their folders without writing."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sibp.runs.folder import RunFolder
from sibp.runs.identity import essential, method_name, setting_name
from sibp.runs.values import number_or_nan

LAST_BYTES = 65_536  # of metrics.jsonl; a row is shorter
ORDER = ("completed", "diverged", "failed", "running", "stopped", "not started")


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        label: its display name.
        status: one of ``ORDER``; stopped: begun, but no process is training it.
        step: of the last logged row.
        total: steps of the whole run; None if not known yet.
        row: the last logged row, or empty.
    """

    label: str
    status: str
    step: int
    total: int | None
    row: dict[str, Any]


def state_of(config: Mapping[str, Any]) -> State:
    """Read the state of a run.

    Args:
        config: its resolved settings.

    Returns:
        Its state.
    """
    folder = RunFolder(config)
    summary = folder.summary() or {}
    row = _last_row(folder.metrics)
    status = str(summary.get("status") or _state_without_summary(folder))
    optimizer = essential(config.get("optimizer") or {})
    label = f"{method_name(optimizer)} {setting_name(optimizer)} s{config.get('seed')}"
    step = number_or_nan(row.get("step"))
    return State(label, status, int(step) if step == step else 0, _total(config, row), row)


def _state_without_summary(folder: RunFolder) -> str:
    if is_locked(folder.path / ".lock"):
        return "running"
    return "stopped" if folder.metrics.exists() else "not started"


def is_locked(path: Path) -> bool:
    """Whether a process holds a run's lock.

    Args:
        path: of the lock.

    Returns:
        True if it is held. A process that requests the lock during this check retries.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as lock:  # opening a named pipe would block
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last_row(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        for line in reversed(file.read().split(b"\n")[:-1]):  # the last may be half-written
            row = json.loads(line)
            return row if isinstance(row, dict) else {}
    return {}


def _total(config: Mapping[str, Any], row: Mapping[str, Any]) -> int | None:
    """Steps of the whole run; the rows give the steps per epoch."""
    limits = [config["max_steps"]] if config.get("max_steps") is not None else []
    step, epoch = number_or_nan(row.get("step")), number_or_nan(row.get("epoch"))
    if config.get("epochs") is not None:
        if not (step > 0 and epoch > 0):
            return None
        limits.append(config["epochs"] * round(step / epoch))
    return min(limits) if limits else None


def status_table(states: Sequence[State]) -> list[str]:
    """The runs as text: a count per status, then one line per run.

    Args:
        states: of the runs.

    Returns:
        The lines.
    """
    count = Counter(state.status for state in states)
    known = [f"{count[status]} {status}" for status in ORDER if count[status]]
    lines = [f"{len(states)} runs: {', '.join(known)}"]
    width = max((len(state.label) for state in states), default=0)
    for state in states:
        lines.append(f"{state.status:<11} {state.label.ljust(width)}  {progress_of(state)}".rstrip())
    return lines


def progress_of(state: State) -> str:
    """A run's progress as text.

    Args:
        state: of the run.

    Returns:
        Such as ``step 340/550, train loss 0.1234, val acc 0.9512, 12 s``; empty before its first row.
    """
    if not state.row:
        return ""
    parts = [f"step {state.step}{f'/{state.total}' if state.total else ''}"]
    for key, form in (("train_loss", ".4f"), ("val_acc", ".4f")):
        value = number_or_nan(state.row.get(key))
        parts += [f"{key.replace('_', ' ')} {value:{form}}"] if value == value else []
    seconds = number_or_nan(state.row.get("seconds"))
    parts += [f"{duration(seconds)} of training"] if seconds == seconds else []
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as text, such as ``0.53 s``, ``42 s``, ``12 min`` or ``3.2 h``."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
