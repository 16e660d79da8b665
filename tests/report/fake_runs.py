"""Synthetic run folders in the training command's format."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
SIBP = {"name": "sibp", "lr": 0.3, "prox_weight": 1.0, "solver": "cg:5"}
PROXBP = {"name": "proxbp", "lr": 1.0, "prox_weight": 3.0, "solver": "exact"}


def config(optimizer: Mapping[str, Any], seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [64], "init": "default", "init_std": None},
        "optimizer": dict(optimizer),
        "batch_size": 50,
        "epochs": 1,
        "max_steps": None,
        "seed": seed,
        "log_every": 10,
        "target_val_acc": 0.9,
        "device": "auto",
        "run_root": "runs",
        "data_root": "data",
        **changes,
    }


def rows(losses: Sequence[float | None], seconds_per_step: float = 0.01, layers: Sequence[str] = ()) -> list[dict]:
    """A row every 10 steps; the accuracy is exp(-loss)."""
    found = []
    for i, loss in enumerate(losses):
        accuracy = None if loss is None else math.exp(-loss)
        row: dict[str, Any] = {"step": 10 * i, "epoch": i / 10, "seconds": 10 * i * seconds_per_step}
        row |= {"train_loss": loss, "train_acc": accuracy, "val_loss": loss, "val_acc": accuracy}
        if layers and i:
            row["solver"] = {layer: {"iterations": 5.0, "decrease": 1 / (i + 1)} for layer in layers}
        found.append(row)
    return found


def write_run(
    folder: Path,
    optimizer: Mapping[str, Any] = SGD,
    seed: int = 0,
    losses: Sequence[float | None] = (2.0, 1.0, 0.5),
    status: str | None = "completed",
    seconds_per_step: float = 0.01,
    layers: Sequence[str] = (),
    summary: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write one run; ``status=None`` leaves summary.json away, as in a run that goes on."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(optimizer, seed, **changes)))
    logged = rows(losses, seconds_per_step, layers)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    if status is not None:
        about = {
            "git_commit": "0123abcd",
            "git_dirty": False,
            "versions": {"torch": "2.15.0"},
            "host": "box",
            "device": "cpu",
            "threads": 1,
        }
        ending: dict[str, Any] = {
            "status": status,
            "reason": None if status == "completed" else "the training loss became nan at step 21",
            "steps": logged[-1]["step"],
            "initial_train_loss": losses[0],
            "final": {key: value for key, value in logged[-1].items() if key != "solver"},
            "seconds": {"train": logged[-1]["seconds"], "eval": 0.1, "log": 0.1},
            "initial_weights_sha256": f"weights{seed}",
            "batches_sha256": f"batches{seed}",
            "data_sha256": "data",
            "environment": about,
            "started": "2026-01-01T00:00:00+00:00",
        }
        if status == "completed":
            ending |= {"test_loss": losses[-1], "test_acc": logged[-1]["val_acc"]}
        (folder / "summary.json").write_text(json.dumps({**ending, **(summary or {})}))
    return folder


def write_study(root: Path) -> Path:
    """Three methods with a grid over two tuning seeds, the best then over five fresh ones; some runs went wrong."""
    for optimizer, speed in ((SGD, 1.0), (PROXBP, 0.6), (SIBP, 0.5)):
        for lr in (0.1, 0.3, 1.0, 3.0):
            best = lr == 0.3
            for seed in (100, 101, *(range(5) if best else ())):
                end = 0.05 * speed * (1 + abs(math.log10(lr / 0.3)) + 0.01 * (seed % 7))
                losses: list[float | None] = [2.3 + 0.01 * seed, 1.0 * speed, 0.3 * speed, end]
                bad = lr == 3.0 and optimizer is SGD
                write_run(
                    root / f"{optimizer['name']}-lr{lr}-s{seed}",
                    {**optimizer, "lr": lr},
                    seed,
                    [*losses[:2], None] if bad else losses,
                    "diverged" if bad else "completed",
                    seconds_per_step=0.001 / speed**2,
                    layers=("0", "2") if "solver" in optimizer else (),
                )
    write_run(root / "sgd-unfinished", {**SGD, "lr": 0.2}, 100, (2.3, 1.0), status=None)
    failed = write_run(root / "sibp-failed", {**SIBP, "prox_weight": 9.0}, 100, (2.3,), "failed")
    (failed / "metrics.jsonl").unlink()
    broken = write_run(root / "sibp-broken", SIBP, 102)
    (broken / "summary.json").write_bytes(b"\x80\x04\x95garbage")
    return root
