"""One run from its config to its summary, whatever happens on the way."""

import hashlib
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from sibp.experiment.data import load_data
from sibp.experiment.environment import describe
from sibp.experiment.errors import UserError
from sibp.experiment.loop import DivergedError, StoppedError, Trainer
from sibp.experiment.models import build_model, is_flat
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.plugins import load_plugins
from sibp.experiment.run_folder import ANEW, BusyError, RunFolder
from sibp.experiment.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """How a run ended: completed, diverged, failed, skipped, busy or interrupted, and a sentence about it.

    ``wrong_input`` says that a run failed for something that only the user can put right.
    """

    status: str
    message: str
    folder: RunFolder
    wrong_input: bool = False


def run(config: Mapping[str, Any]) -> Outcome:
    """Train what a config describes, or go on with it, or leave it be if it is finished.

    Args:
        config: resolved settings, as plain mappings.

    Returns:
        How it ended. Errors end up in summary.json and in the message, not in an exception.
    """
    folder = RunFolder(config)
    try:
        with folder.locked():
            if not folder.is_finished() or config.get("force"):
                return _run_locked(config, folder)
            return _add_test(config, folder) if _lacks_test(config, folder) else _kept(folder)
    except BusyError as busy:
        return Outcome("busy", str(busy), folder)
    except UserError as error:
        return Outcome("failed", str(error), folder, wrong_input=True)
    except OSError as error:
        return Outcome("failed", _unwritten(error, folder), folder)


def _kept(folder: RunFolder) -> Outcome:
    summary = folder.summary() or {}
    status = "skipped" if summary["status"] == "completed" else summary["status"]
    return Outcome(status, f"{summary['status']} before; force=true trains it anew", folder)


def _lacks_test(config: Mapping[str, Any], folder: RunFolder) -> bool:
    summary = folder.summary() or {}
    return summary["status"] == "completed" and "test_acc" not in summary and config.get("evaluate_test") is True


def _add_test(config: Mapping[str, Any], folder: RunFolder) -> Outcome:
    """Add test figures to a run that was completed without; it needs no training for that."""
    if not folder.checkpoint.exists():
        raise UserError(f"{folder.path} has no checkpoint to compute test figures from: {ANEW}")
    trainer, _, _ = _prepare(Settings.from_config(config), folder)
    trainer.restore()
    summary = {**(folder.summary() or {}), **_test_figures(trainer)}
    folder.write_config()
    trainer.finish(summary)
    folder.write_summary(summary)
    return Outcome("completed", _in_short(summary), folder)


def _test_figures(trainer: Trainer) -> dict[str, float | None]:
    loss, accuracy = trainer.evaluate(trainer.data.test)
    return {"test_loss": loss, "test_acc": accuracy}


def _run_locked(config: Mapping[str, Any], folder: RunFolder) -> Outcome:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.write_config()
        settings = Settings.from_config(config)
        trainer, another, facts = _prepare(settings, folder)
        facts["started"] = started
        folder.forget_end()  # of an attempt that failed
        try:
            trainer.fit(another)
            status, reason, ending = "completed", None, {}
        except DivergedError as error:
            status, reason = "diverged", str(error)
            ending = {"diverged_step": error.step, "diverged_loss": str(error.loss)}
        summary = {"status": status, "reason": reason, **ending, **_results(trainer), **facts}
        if status == "completed" and settings.evaluate_test:
            summary |= _test_figures(trainer)
        trainer.finish(summary)
        folder.write_summary(summary)
        return Outcome(status, reason or _in_short(summary), folder)
    except StoppedError as stop:
        return Outcome("interrupted", f"{stop}: the same command goes on from there", folder)
    except UserError as error:
        return _failed(folder, started, str(error), None)
    except OSError as error:
        return _failed(folder, started, _unwritten(error, folder), traceback.format_exc())
    except Exception as error:
        return _failed(folder, started, f"{type(error).__name__}: {error}", traceback.format_exc())


def _failed(folder: RunFolder, started: str, reason: str, trace: str | None) -> Outcome:
    try:
        if not folder.is_finished():  # as it still is where force=true could not even start
            folder.write_summary({"status": "failed", "reason": reason, "traceback": trace, "started": started})
    except OSError as error:  # a full disk must not hide the reason
        print(f"summary.json could not be written: {error}", file=sys.stderr)
    return Outcome("failed", reason, folder, wrong_input=trace is None)


def _unwritten(error: OSError, folder: RunFolder) -> str:
    return (
        f"{error.filename or folder.path} cannot be read or written ({error.strerror or error}): all up to the last "
        "checkpoint is kept, and the same command goes on from there once this is put right."
    )


def _prepare(settings: Settings, folder: RunFolder) -> tuple[Trainer, Callable[[], Trainer], dict[str, Any]]:
    """A run's trainer, what makes one just like it, and facts for its summary."""
    load_plugins(settings.plugins)
    device = _device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    flat = is_flat(settings.model)
    data = load_data(settings.dataset, settings.data_root, settings.download)
    data = data.with_label_noise(settings.label_noise, settings.seed).prepared(flat, device)

    def new_trainer() -> Trainer:
        model = build_model(settings.model, data.shape, data.classes, settings.seed).to(device)
        return Trainer(settings, folder, data, model, build_optimizer(settings.optimizer, model))

    trainer = new_trainer()
    facts = {
        "initial_weights_sha256": _digest(trainer.model),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "data_sha256": data.sha256,
        "environment": describe(device),
    }
    if settings.force:
        folder.clear()  # only now: what was kept is lost to nothing less than a run that can start
    return trainer, new_trainer, facts


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device={name} is not there: choose one of: auto, cpu, cuda (an NVIDIA GPU).")
    return torch.device(name)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _results(trainer: Trainer) -> dict[str, Any]:
    """The figures of the rows logged: first, last, best, and when the target was met (null: never)."""
    rows, target = trainer.rows, trainer.settings.target_val_acc
    if not rows:
        return {"steps": trainer.step}
    best = min(rows, key=_badness)
    met = next((row for row in rows if target is not None and row["val_acc"] >= target), None)
    return {
        "steps": trainer.step,
        "first_step_seconds": trainer.first_step_seconds,  # with all that is compiled and loaded; not in any other
        "initial_train_loss": rows[0]["train_loss"],
        "final": {key: value for key, value in rows[-1].items() if key != "solver"},
        "best_val_acc": best["val_acc"],
        "best_val_step": best["step"],
        "target_val_acc": target,
        "steps_to_target": met and met["step"],
        "seconds_to_target": met and met["seconds"],
        "seconds": dict(trainer.clock.seconds),
        "batches_sha256": trainer.batches_sha256,
    }


def _badness(row: Mapping[str, Any]) -> tuple[float, float]:
    """The smaller, the better: by accuracy, and by loss alone where there is none."""
    accuracy = row["val_acc"]
    return (-accuracy, 0.0) if accuracy is not None else (0.0, row["val_loss"])


def _in_short(summary: Mapping[str, Any]) -> str:
    final = summary["final"]
    kind, key = ("accuracy", "acc") if final["val_acc"] is not None else ("loss", "loss")
    test = f"test {kind} {summary[f'test_{key}']:.4f} " if f"test_{key}" in summary else "no test "
    return (
        f"train loss {final['train_loss']:.4f}, validation {kind} {final[f'val_{key}']:.4f}, {test}"
        f"after {summary['steps']} steps, {summary['seconds']['train']:.1f} s of training"
    )
