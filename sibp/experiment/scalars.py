"""TensorBoard's copy of a run's metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class ScalarLog:
    """Writes one run's scalars against its steps, under one name and in one folder.

    Args:
        folder: where the event files go.
        from_step: the last step already logged; what a killed process wrote after it is dropped.
    """

    def __init__(self, folder: Path, from_step: int | None):
        self._writer = SummaryWriter(
            str(folder), purge_step=None if from_step is None else from_step + 1, flush_secs=10
        )

    def add(self, row: Mapping[str, Any], seconds_per_step: float | None) -> None:
        """Log one row of metrics.jsonl.

        Args:
            row: as written there.
            seconds_per_step: mean training seconds of a step since the row before; None at the first.
        """
        scalars = {f"{what}/{part}": row[f"{part}_{key}"] for what, key in QUANTITIES for part in PARTS}
        if seconds_per_step is not None:
            scalars["time/seconds_per_step"] = seconds_per_step
        for layer, stats in row.get("solver", {}).items():
            for key, value in stats.items():
                if isinstance(value, int | float):
                    scalars[f"solver/{layer}/{key}"] = value
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, row["step"])

    def flush(self) -> None:
        """Bring everything logged to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


QUANTITIES = (("loss", "loss"), ("accuracy", "acc"))
PARTS = ("train", "val")
