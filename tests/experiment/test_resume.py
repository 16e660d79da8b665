"""Oracle: an undisturbed run. Whatever happens to another, it ends equal to it bit for bit."""

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import assert_same_end, crash, fail_at
from torch import nn

from sibp.experiment import runner
from sibp.experiment.checkpoint import load_checkpoint, save_checkpoint
from sibp.experiment.data import DATASETS
from sibp.experiment.environment import describe
from sibp.experiment.models import MODELS, ModelSpec
from sibp.experiment.optimizers import OPTIMIZERS
from sibp.experiment.plugins import load_plugins
from sibp.experiment.runner import run
from sibp.runs.folder import AGAIN, RunFolder


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


def test_an_interrupted_forced_run_resumes_without_force_as_the_message_says(make_config, monkeypatch):
    fail_at(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    config = make_config()
    stopped = run({**config, "force": True})
    assert stopped.message.endswith("all of it kept: the same command without force=true resumes from there")
    fail_at(monkeypatch, 0, lambda: pytest.fail("it starts anew"))
    assert run(config).status == "completed"


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


@pytest.fixture
def stopped(make_config, monkeypatch) -> RunFolder:
    """A run interrupted at step 8."""
    with monkeypatch.context() as patch:
        fail_at(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        return run(make_config()).folder


MISFITS = {
    "optimizer's settings": lambda state: state["optimizer"]["param_groups"][0].pop("momentum"),
    "optimizer": lambda state: state.pop("optimizer"),
    "model": lambda state: state["model"].popitem(),
    "shape": lambda state: state["model"].update({key: torch.zeros(3) for key in state["model"]}),
    "text": lambda state: state.update(step="8"),
    "beyond": lambda state: state.update(step=99),
    "negative": lambda state: state.update(step=-1),
    "random": lambda state: state.update(random_cpu=torch.zeros(3)),
    "seconds": lambda state: state.update(seconds={"train": -1.0, "eval": 0.0, "log": 0.0}),
}


@pytest.mark.parametrize("change", MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_that_does_not_fit_is_named_and_kept(stopped, change):
    state = torch.load(stopped.checkpoint, weights_only=True)
    change(state)
    torch.save(state, stopped.checkpoint)
    with stopped.metrics.open("a") as file:
        file.write('{"step": 9')
    before = stopped.checkpoint.read_bytes(), stopped.metrics.read_bytes()
    outcome = run(stopped.config)
    assert (outcome.status, outcome.wrong_input) == ("failed", True)
    assert outcome.message.startswith(f"{stopped.checkpoint} does not fit this run (")
    assert outcome.message.endswith(f": {AGAIN}")
    assert (stopped.checkpoint.read_bytes(), stopped.metrics.read_bytes()) == before


def test_a_run_is_not_resumed_with_other_data(stopped, monkeypatch):
    digits = DATASETS["digits"]
    monkeypatch.setitem(DATASETS, "digits", lambda *args: replace(digits(*args), sha256="other"))
    before = stopped.checkpoint.read_bytes(), stopped.metrics.read_bytes()
    outcome = run(stopped.config)
    assert (outcome.status, outcome.wrong_input) == ("failed", True)
    assert "was begun with other data" in outcome.message
    assert (stopped.checkpoint.read_bytes(), stopped.metrics.read_bytes()) == before
    monkeypatch.undo()
    assert run(stopped.config).status == "completed"


def test_a_run_resumed_in_another_environment_says_so(stopped, monkeypatch):
    first = describe(torch.device("cpu"))
    second = {**first, "threads": 2, "plugins": {"mine": "a"}, "load": 7.0}
    third = {**second, "plugins": {"mine": "b"}, "versions": {**first["versions"], "torch": "9"}}
    monkeypatch.setattr(runner, "describe", lambda *_: second)
    fail_at(monkeypatch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(stopped.config).message.endswith("; resumed at step 8 with another threads, mine")
    monkeypatch.setattr(runner, "describe", lambda *_: third)
    outcome, notes = run(stopped.config), ["resumed at step 8 with another threads, mine"]
    notes.append("resumed at step 12 with another torch, mine")
    assert outcome.message.endswith("; ".join(["", *notes]))
    summary = stopped.summary() or {}
    assert (summary["environment"], summary["notes"]) == (third, notes)
    *_, last = earlier = summary["earlier_environments"]
    assert last == {**second, "until_step": 12}
    assert [each["threads"] for each in earlier] == [1, 2]


def test_the_environment_has_a_digest_of_every_plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for folder in (tmp_path, tmp_path / "digested_package"):
        folder.mkdir(exist_ok=True)
    (tmp_path / "digested.py").write_text("a = 1\n")
    (tmp_path / "digested_package" / "__init__.py").write_text("")
    names = ["digested", "digested_package"]
    load_plugins(names)
    before = describe(torch.device("cpu"), names)["plugins"]
    (tmp_path / "digested_package" / "part.py").write_text("b = 1\n")
    after = describe(torch.device("cpu"), names)["plugins"]
    assert before["digested"] == after["digested"] == hashlib.sha256(b"a = 1\n").hexdigest()
    assert before["digested_package"] != after["digested_package"]


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
