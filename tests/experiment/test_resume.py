"""Oracle: an undisturbed run. Whatever happens to another, it ends equal to it bit for bit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import assert_same_end, crash, fail_at
from torch import nn

from sibp.experiment.checkpoint import load_checkpoint, save_checkpoint
from sibp.experiment.models import MODELS, ModelSpec
from sibp.experiment.optimizers import OPTIMIZERS
from sibp.experiment.runner import run
from sibp.runs.folder import RunFolder


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sibp", "proxbp"])
@pytest.mark.parametrize("step", [2, 13])
def test_a_run_retried_after_an_error_ends_as_if_nothing_had_happened(
    make_config, tmp_path, monkeypatch, optimizer, step
):
    fail_at(monkeypatch, step, crash)
    config = make_config(optimizer)
    failed = run(config)
    assert failed.status == "failed"
    summary = failed.folder.summary()
    assert summary is not None
    assert summary["status"] == "failed"
    assert "the lights went out" in summary["traceback"]

    again = run(config)
    whole = run(make_config(optimizer, run_root=str(tmp_path / "whole")))
    assert again.status == whole.status == "completed"
    assert_same_end(again.folder, whole.folder)


def dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(torch.Size(shape).numel(), classes))


def test_layers_with_random_numbers_resume_the_same_sequence(make_config, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "dropout", ModelSpec(dropout, flat=True))
    fail_at(monkeypatch, 13, crash)
    config = make_config(model={"name": "dropout"})
    assert run(config).status == "failed"
    assert_same_end(run(config).folder, run({**config, "run_root": str(tmp_path / "whole")}).folder)


def test_trials_of_a_line_search_use_the_masks_of_its_batch(make_config, monkeypatch):
    """An optimizer that asks at once, and twice, for the loss at unchanged weights gets the batch's loss."""
    asked = []

    class Asking(torch.optim.SGD):
        line_search = True

        def step(self, closure: Any = None, *, evaluate: Any = None, loss: Any = None) -> Any:
            asked.append((loss.item(), evaluate().item(), evaluate().item()))

    monkeypatch.setitem(MODELS, "dropout", ModelSpec(dropout, flat=True))
    monkeypatch.setitem(OPTIMIZERS, "asking", lambda model: Asking(model.parameters(), lr=0.1))
    config = make_config(model={"name": "dropout"}, max_steps=3)
    assert run({**config, "optimizer": {"name": "asking"}}).status == "completed"
    assert len(asked) >= 3
    assert all(loss == first == second for loss, first, second in asked)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_resumable_run(make_config, tmp_path, monkeypatch, number):
    fail_at(monkeypatch, 7, lambda: os.kill(os.getpid(), number))
    config = make_config()
    stopped = run(config)
    assert stopped.status == "interrupted"
    assert "step 8 of 20" in stopped.message
    assert stopped.folder.summary() is None
    assert torch.load(stopped.folder.checkpoint, weights_only=True)["step"] == 8

    assert_same_end(run(config).folder, run({**config, "run_root": str(tmp_path / "whole")}).folder)


def test_lines_written_after_the_checkpoint_are_rewritten(make_config, tmp_path, monkeypatch):
    fail_at(monkeypatch, 13, crash)
    config = make_config()
    folder = run(config).folder
    with folder.metrics.open("a") as file:
        file.write('{"step": 12, "train_l')  # as left by a full disk or a power cut
    assert_same_end(run(config).folder, run({**config, "run_root": str(tmp_path / "whole")}).folder)


def test_a_damaged_checkpoint_is_named_and_kept(make_config, monkeypatch):
    fail_at(monkeypatch, 13, crash)
    config = make_config()
    folder = run(config).folder
    content = folder.checkpoint.read_bytes()[:-200]
    folder.checkpoint.write_bytes(content)
    rows = folder.metrics.read_bytes()

    outcome = run(config)
    assert outcome.status == "failed"
    assert str(folder.checkpoint) in outcome.message
    assert "force=true" in outcome.message
    assert (folder.checkpoint.read_bytes(), folder.metrics.read_bytes()) == (content, rows)
    assert run({**config, "force": True}).status == "completed"


def test_lost_metrics_are_reported(make_config, monkeypatch):
    fail_at(monkeypatch, 13, crash)
    config = make_config()
    folder = run(config).folder
    folder.metrics.write_text("")
    outcome = run(config)
    assert outcome.status == "failed"
    assert "has lost lines" in outcome.message


def test_a_checkpoint_that_holds_code_is_not_opened(make_config, monkeypatch):
    fail_at(monkeypatch, 13, crash)
    config = make_config()
    folder = run(config).folder
    torch.save({"metrics_bytes": 0, "step": Path("x")}, folder.checkpoint)  # any class would do
    outcome = run(config)
    assert outcome.status == "failed"
    assert "is damaged" in outcome.message


def test_a_partially_written_checkpoint_never_gets_its_name(make_config, monkeypatch):
    config = make_config()
    folder = RunFolder(config)
    folder.path.mkdir(parents=True)
    folder.append_row({"step": 0})
    save_checkpoint(folder, {"step": 1})

    def half(state: Any, file: Any) -> None:
        file.write(b"half")
        crash()

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(RuntimeError, match="lights"):
        save_checkpoint(folder, {"step": 2})
    state = load_checkpoint(folder)
    assert state is not None
    assert state["step"] == 1
    assert json.loads(folder.metrics.read_text()) == {"step": 0}
