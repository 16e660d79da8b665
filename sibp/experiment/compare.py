"""Finished runs side by side: a table and a picture, made from their folders alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sibp.runs.reading import Run

PANELS = (("train_loss", "training loss"), ("val_acc", "validation accuracy"))
AXES = (("step", "steps"), ("seconds", "training seconds"))


def table(runs: Sequence[Run]) -> str:
    """A text table, one line a run.

    Args:
        runs: finished runs; a run that diverged has dashes where it has no figures.

    Returns:
        The table, without a last newline.
    """
    lines = [
        ("method", "train loss", "val acc", "test acc", "train s", "ms/step", "steps to target"),
        *(_figures(run) for run in runs),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _figures(run: Run) -> tuple[str, ...]:
    summary, final = run.summary, run.summary.get("final", {})
    seconds, steps = summary.get("seconds", {}).get("train"), summary.get("steps")
    if summary["status"] == "diverged":
        reached = "diverged"
    elif summary.get("target_val_acc") is None:
        reached = "no target"
    else:
        reached = f"{summary['steps_to_target'] or 'never'} ({summary['target_val_acc']:g})"
    return (
        run.label,
        _number(final.get("train_loss"), ".2e"),
        _number(final.get("val_acc"), ".4f"),
        _number(summary.get("test_acc"), ".4f"),
        _number(seconds, ".2f"),
        _number(1000 * seconds / steps if seconds and steps else None, ".2f"),
        reached,
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw loss and accuracy against steps and against seconds.

    Args:
        runs: with their rows.
        path: the picture's file; its ending decides the format.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    for i, (quantity, name) in enumerate(PANELS):
        for j, (axis, axis_name) in enumerate(AXES):
            for run in runs:
                known = ~np.isnan(run.columns[quantity])
                grid[i, j].plot(run.columns[axis][known], run.columns[quantity][known], label=run.label)
            grid[i, j].set(xlabel=axis_name if i else "", ylabel="" if j else name)
            grid[i, j].grid(alpha=0.3)
    grid[0, 0].set_yscale("log")
    grid[0, 0].legend()
    figure.savefig(path, dpi=120)


def same_start(runs: Sequence[Run]) -> bool:
    """Whether runs can be compared at all.

    Args:
        runs: finished runs.

    Returns:
        True if all had the same initial weights and saw the same batches of the same data.
    """
    proofs = ("initial_weights_sha256", "batches_sha256", "data_sha256", "initial_train_loss")
    return len({tuple(run.summary.get(key) for key in proofs) for run in runs}) <= 1
