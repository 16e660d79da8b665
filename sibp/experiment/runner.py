"""One run, from its config to its summary."""

import hashlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from sibp.experiment import data as data_sets_known
from sibp.experiment import optimizers as optimizers_known
from sibp.experiment.data import Data, load_data
from sibp.experiment.environment import describe
from sibp.experiment.history import Environment, notes_of
from sibp.experiment.loop import DivergedError, StoppedError, Trainer
from sibp.experiment.memory import is_out_of_memory
from sibp.experiment.models import build_model, is_flat
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.plugins import load_plugins
from sibp.experiment.settings import Settings, known_builder
from sibp.experiment.startup import import_no_compiler
from sibp.runs.errors import UserError
from sibp.runs.folder import AGAIN, FINISHED, BusyError, RunFolder, resuming
from sibp.runs.identity import NOT_IN_NAME, run_name
from sibp.runs.outcome import Outcome
from sibp.runs.values import canonical, number_or_nan


def run(config: Mapping[str, Any]) -> Outcome:
    """Train a config's run, resume it, or skip it if it is finished.

    A run that cannot start for a reason that only the user can fix leaves no folder.

    Args:
        config: resolved settings, as plain mappings.

    Returns:
        How it ended. Errors are recorded in summary.json and in the message, not raised.
    """
    folder, started = RunFolder(config), datetime.now(UTC).isoformat(timespec="seconds")
    prepared: _Prepared | Exception
    try:
        settings = Settings.from_config(config)
    except UserError as error:
        return Outcome("failed", str(error), folder, wrong_input=True)
    try:
        if is_done(settings, folder):
            return _kept(folder)
        folder.check_place()
        prepared = _prepare(settings, folder, device_of(settings.device))
    except UserError as error:
        return Outcome("failed", str(error), folder, wrong_input=True)
    except Exception as error:  # not a mistake of the user: it is stored in the folder with its traceback
        prepared = error
    try:
        with folder.locked():
            if isinstance(prepared, Exception):
                return _failed(folder, started, prepared)
            if is_done(settings, folder):  # another process has finished it in the meantime
                return _kept(folder)
            try:
                return _run_locked(prepared, started)
            except StoppedError as stop:
                return Outcome(
                    "interrupted", _with_notes(f"{stop}: {resuming(config)} resumes from there", prepared), folder
                )
            except Exception as error:
                return _failed(folder, started, error)
    except BusyError as busy:
        return Outcome("busy", str(busy), folder)
    except UserError as error:
        return Outcome("failed", str(error), folder, wrong_input=True)
    except OSError as error:
        return Outcome("failed", _write_error_message(error, folder), folder)


def is_done(settings: Settings, folder: RunFolder) -> bool:
    """Whether a run has a result, so that its command skips it.

    Args:
        settings: the run's.
        folder: its folder.

    Returns:
        False if it is to be trained again, test metrics are to be added, or no report can use it.
    """
    summary = folder.summary() or {}
    if settings.force or summary.get("status") not in FINISHED or folder.damage():
        return False
    return summary["status"] == "diverged" or not settings.evaluate_test or "test_acc" in summary


def check(configs: Sequence[Mapping[str, Any]], elsewhere: bool = False) -> None:
    """Construct every run's settings, data, model and optimizer before the first run is trained.

    Args:
        configs: of all runs of a command.
        elsewhere: whether they will run on other machines, which may have other devices and data.

    Raises:
        UserError: a run could not start; says why, and which one if there are several.
    """
    tried: dict[str, UserError | None] = {}
    data_sets: dict[str, Data] = {}
    wrong: list[tuple[Mapping[str, Any], UserError]] = []
    for config in configs:
        key = canonical({k: v for k, v in config.items() if k not in (*NOT_IN_NAME, "seed")} | _places(config))
        if key not in tried:
            try:
                tried[key] = None
                _try_out(config, elsewhere, data_sets)
            except UserError as error:
                tried[key] = error
            except Exception:
                pass
        if (error := tried[key]) is not None:
            wrong.append((config, error))
    if wrong:
        config, error = wrong[0]
        where = f" This applies to {len(wrong)} of {len(configs)} jobs, such as {run_name(config)}."
        raise UserError(f"{str(error).removesuffix('.')}.{where if len(wrong) < len(configs) else ''}") from error


def _places(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) for key in ("run_root", "data_root", "device", "threads")}


def _try_out(config: Mapping[str, Any], elsewhere: bool, data_sets: dict[str, Data]) -> None:
    settings, folder = Settings.from_config(config), RunFolder(config)
    if is_done(settings, folder):
        return
    folder.check_place()
    if elsewhere:
        known_builder("dataset", data_sets_known.DATASETS, settings.dataset)
        known_builder("optimizer", optimizers_known.OPTIMIZERS, settings.optimizer)
        return
    device_of(settings.device)
    key = canonical([settings.dataset, settings.data_root])
    if key not in data_sets:
        data_sets.clear()  # one at a time in memory
        data_sets[key] = load_data(settings.dataset, settings.data_root, settings.download)
    device = torch.device("cpu")
    _trainer(settings, folder, samples(settings, data_sets[key], device), device)


def _kept(folder: RunFolder) -> Outcome:
    folder.repair_config()
    summary = folder.summary() or {}
    status = "skipped" if summary["status"] == "completed" else summary["status"]
    return Outcome(status, f"{summary['status']} before; force=true trains it again", folder, kept=True)


def _add_test(prepared: "_Prepared") -> Outcome:
    """Evaluate a completed run on test data, without training."""
    folder, trainer = prepared.folder, prepared.trainer
    if damage := folder.damage():
        raise UserError(f"The finished run in {folder.path} is damaged ({damage}): {AGAIN}")
    if not folder.checkpoint.exists():
        raise UserError(f"{folder.path} has no checkpoint to compute test metrics from: {AGAIN}")
    trainer.restore()
    summary = {**(folder.summary() or {}), **_test_metrics(trainer)}
    folder.write_config()
    trainer.finish(summary)
    folder.write_summary(summary)
    return Outcome("completed", _summary_line(summary), folder)


def _test_metrics(trainer: Trainer) -> dict[str, float | None]:
    loss, accuracy = trainer.evaluate(trainer.data.test)
    return {"test_loss": loss, "test_acc": accuracy}


def _run_locked(prepared: "_Prepared", started: str) -> Outcome:
    folder, trainer = prepared.folder, prepared.trainer
    if folder.is_finished() and not trainer.settings.force:
        return _add_test(prepared)
    if trainer.settings.force:
        folder.clear()  # only now: kept results are deleted only for a run that can start
    folder.write_config()
    folder.forget_end()  # of a failed attempt
    try:
        trainer.fit(prepared.another)
        status, reason, ending = "completed", None, {}
    except DivergedError as error:
        status, reason = "diverged", str(error)
        ending = {"diverged_step": error.step, "diverged_loss": str(error.loss)}
    summary = {"status": status, "reason": reason, **ending, **_results(trainer), **prepared.facts, "started": started}
    if trainer.earlier_environments:
        summary |= {"earlier_environments": trainer.earlier_environments, "notes": _notes(trainer)}
    if status == "completed" and trainer.settings.evaluate_test:
        summary |= _test_metrics(trainer)
    trainer.finish(summary)
    folder.write_summary(summary)
    return Outcome(status, _with_notes(reason or _summary_line(summary), prepared), folder)


def _notes(trainer: Trainer) -> list[str]:
    return notes_of(trainer.earlier_environments, trainer.environment)


def _with_notes(message: str, prepared: "_Prepared") -> str:
    """The message, followed by the changes of environment at resumptions."""
    return "; ".join([message, *_notes(prepared.trainer)])


def _failed(folder: RunFolder, started: str, error: Exception) -> Outcome:
    """Record the failure in the folder, unless it holds a result."""
    trace = None if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, UserError | OSError):
        reason = str(error) if isinstance(error, UserError) else _write_error_message(error, folder)
    elif is_out_of_memory(error):
        batch, cause = folder.config.get("batch_size"), next(iter(str(error).splitlines()), type(error).__name__)
        reason = f"out of memory: give a smaller model, or a batch_size below {batch} ({cause})"
    try:
        if not folder.is_finished():  # unchanged where force=true could not start
            folder.write_summary({"status": "failed", "reason": reason, "traceback": trace, "started": started})
    except OSError as problem:  # even on a full disk, the reason is reported
        print(f"summary.json could not be written: {problem}", file=sys.stderr)
    return Outcome("failed", reason, folder, wrong_input=trace is None)


def _write_error_message(error: OSError, folder: RunFolder) -> str:
    path = error.filename or folder.path
    name = os.fsdecode(path) if isinstance(path, bytes) else path
    return (
        f"{name} cannot be read or written ({error.strerror or error}): everything up to the last "
        f"checkpoint is kept, and {resuming(folder.config)} resumes from there once this is fixed."
    )


@dataclass(frozen=True)
class _Prepared:
    """A run ready to start: its trainer, a factory of identical trainers, and entries for its summary."""

    folder: RunFolder
    trainer: Trainer
    another: Callable[[], Trainer]
    facts: dict[str, Any]


def _prepare(settings: Settings, folder: RunFolder, device: torch.device) -> _Prepared:
    load_plugins(settings.plugins)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    data = samples(settings, load_data(settings.dataset, settings.data_root, settings.download), device)
    environment = describe(device, settings.plugins)
    trainer = _trainer(settings, folder, data, device, environment)
    facts = {
        "initial_weights_sha256": _digest(trainer.model),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "samples": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "data_sha256": data.sha256,
        "environment": environment,
    }
    return _Prepared(folder, trainer, lambda: _trainer(settings, folder, data, device), facts)


def samples(settings: Settings, data: Data, device: torch.device) -> Data:
    """The samples of a run, on its device.

    Args:
        settings: the run's.
        data: the whole data set.
        device: to train on.

    Returns:
        The data in the model's form, limited and with wrong labels as the settings say.

    Raises:
        UserError: there are fewer training samples than asked for, or none of a part that is evaluated.
    """
    name = settings.dataset["name"]
    if len(data.val) == 0:
        raise UserError(f"dataset={name} has no validation samples, which every run evaluates: give it some.")
    if len(data.test) == 0 and settings.evaluate_test:
        raise UserError(f"dataset={name} has no test samples: give it some, or evaluate_test=false.")
    data = data.first(settings.train_limit).with_label_noise(settings.label_noise, settings.seed)
    return data.prepared(is_flat(settings.model), device)


def _trainer(
    settings: Settings, folder: RunFolder, data: Data, device: torch.device, environment: Environment | None = None
) -> Trainer:
    import_no_compiler()
    model = build_model(settings.model, data.shape, data.classes, settings.seed).to(device)
    return Trainer(settings, folder, data, model, build_optimizer(settings.optimizer, model), environment)


def device_of(name: str) -> torch.device:
    """The device named in a setting.

    Args:
        name: auto, cpu or cuda.

    Returns:
        The device.

    Raises:
        UserError: it is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda is not available: torch finds no NVIDIA GPU; give device=cpu or auto.")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name} is not available: choose one of: auto, cpu, cuda (an NVIDIA GPU).")
    return torch.device(name)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _results(trainer: Trainer) -> dict[str, Any]:
    """Metrics of the logged rows: first, last, best, and when the target was met (null: never)."""
    rows, target = trainer.rows, trainer.settings.target_val_acc
    if not rows:
        return {"steps": trainer.step}
    best = min(rows, key=_validation_rank)
    met = next((row for row in rows if target is not None and row["val_acc"] >= target), None)
    return {
        "steps": trainer.step,
        "first_step_seconds": trainer.first_step_seconds,  # including compilation and loading, which other steps lack
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


def _validation_rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """A sort key, smaller is better: by validation accuracy, or by validation loss if there is no accuracy."""
    accuracy, loss = row["val_acc"], number_or_nan(row["val_loss"])  # null in a resumed run's rows if not finite
    return (-accuracy, 0.0) if accuracy is not None else (0.0, math.inf if math.isnan(loss) else loss)


def _summary_line(summary: Mapping[str, Any]) -> str:
    final = summary["final"]
    kind, key = ("accuracy", "acc") if final.get("val_acc") is not None else ("loss", "loss")
    val, tested = (number_or_nan(value) for value in (final.get(f"val_{key}"), summary.get(f"test_{key}")))
    test = f"test {kind} {tested:.4f} " if f"test_{key}" in summary else "no test "
    return (
        f"train loss {final['train_loss']:.4f}, validation {kind} {val:.4f}, {test}"
        f"after {summary['steps']} steps, {summary['seconds']['train']:.1f} s of training"
    )
