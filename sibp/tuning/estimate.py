"""Estimates the wall-clock time of a run, from finished runs of its method or from a few steps that are not kept."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from sibp.experiment.clock import Clock
from sibp.experiment.data import load_data
from sibp.experiment.loop import EARLY_ROWS, Trainer
from sibp.experiment.models import build_model
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.runner import samples
from sibp.experiment.settings import Settings
from sibp.runs.folder import RunFolder

WARM_UP, TIMED = 2, 5  # steps


def seconds_of(folders: Sequence[RunFolder]) -> float | None:
    """Seconds that completed runs took.

    Args:
        folders: runs, finished or not.

    Returns:
        The median over completed runs, including evaluation and logging; None if no run completed.
    """
    summaries = [folder.summary() or {} for folder in folders]
    taken = [sum(s["seconds"].values()) for s in summaries if s.get("status") == "completed" and s.get("seconds")]
    return median(taken) if taken else None


def seconds_from_steps(config: dict[str, Any]) -> float:
    """Seconds that a run would take, estimated from a few of its steps and one evaluation; nothing is kept.

    Args:
        config: the run's resolved settings.

    Returns:
        The estimate.

    Raises:
        UserError: the run could not start.
    """
    settings = Settings.from_config(config)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    data = samples(settings, load_data(settings.dataset, settings.data_root, settings.download), device)
    model = build_model(settings.model, data.shape, data.classes, settings.seed).to(device)
    trainer = Trainer(settings, RunFolder(config), data, model, build_optimizer(settings.optimizer, model))
    steps = [
        _time(device, lambda: trainer._train_step(trainer.order.batch(0).to(device))) for _ in range(WARM_UP + TIMED)
    ]
    evaluations = [_time(device, lambda: trainer.evaluate(data.val)) for _ in range(2)]
    parts = ((data.train, settings.eval_train_limit), (data.val, settings.eval_val_limit))
    images = sum(min(len(split), limit or len(split)) for split, limit in parts)
    early = EARLY_ROWS if settings.log_early is not None else 0
    rows = 1 + early + -(-trainer.total // settings.log_every)
    return trainer.total * median(steps[WARM_UP:]) + rows * min(evaluations) * images / len(data.val)


def _time(device: torch.device, work: Callable[[], Any]) -> float:
    clock = Clock(device)
    with clock.measure("train"):
        work()
    return clock.seconds["train"]
