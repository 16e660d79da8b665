"""Ways to disturb a run in this process, and comparisons with an undisturbed run."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sibp.experiment.loop import Trainer
from sibp.runs.folder import RunFolder


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object], seed: int = 0) -> None:
    """Run an action once, before the training step that follows ``step`` steps of a seed's run."""
    original, armed = Trainer._train_step, [True]

    def train_step(self: Trainer, indices: torch.Tensor) -> torch.Tensor:
        if (self.step, self.settings.seed) == (step, seed) and armed:
            armed.clear()
            action()
        return original(self, indices)

    monkeypatch.setattr(Trainer, "_train_step", train_step)


def crash() -> None:
    """The disturbances that ``fail_at`` can cause."""
    raise RuntimeError("the lights went out")


def without_seconds(value: Any) -> Any:
    """Removes what differs between any two runs: seconds, time of day and environment."""
    if isinstance(value, dict):
        dropped = ("seconds", "first_step_seconds", "seconds_to_target", "environment", "started")
        return {key: without_seconds(item) for key, item in value.items() if key not in dropped}
    return value


def assert_same_end(folder: RunFolder, other: RunFolder) -> None:
    """Rows, summary and weights are bit-identical, and no partial file is left."""
    rows, others = folder.rows(), other.rows()
    assert [without_seconds(row) for row in rows] == [without_seconds(row) for row in others]
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(rows))
    assert without_seconds(folder.summary()) == without_seconds(other.summary())
    (a, b) = (torch.load(f.checkpoint, weights_only=True) for f in (folder, other))
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert list(folder.path.rglob("*.tmp")) == []


def assert_curves_are_the_rows(folder: RunFolder) -> None:
    """TensorBoard finds one file, with every row once and the final metrics once."""
    assert sum(path.stat().st_size > 0 for path in folder.board.iterdir()) == 1
    found = curves(folder.board)
    rows = folder.rows()
    assert [step for step, _ in found["loss/train"]] == [row["step"] for row in rows]
    assert [value for _, value in found["accuracy/val"]] == [float(torch.tensor(row["val_acc"])) for row in rows]
    assert [step for step, _ in found["final/test_acc"]] == [rows[-1]["step"]]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of an event file as TensorBoard reads them: tag -> (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
