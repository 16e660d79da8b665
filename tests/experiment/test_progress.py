"""Progress of a command's runs, and how it is displayed."""

import fcntl
import subprocess
import sys
import threading

import pytest

from sibp.experiment import progress as showing
from sibp.experiment.progress import Progress
from sibp.experiment.runner import run
from sibp.experiment.startup import import_no_compiler
from sibp.runs.folder import RunFolder
from sibp.runs.identity import LATER_OF_OPTIMIZER
from sibp.runs.outcome import Outcome
from sibp.runs.state import duration, state_of
from sibp.train import main

SMALL = ["optimizer=sgd", "model.hidden=[8]", "epochs=null", "max_steps=4", "tensorboard=false", "threads=1", "-m"]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder({"run_root": str(tmp_path), "optimizer": {"name": "sgd", "lr": 0.1}, "seed": 3, "max_steps": 9})


def test_the_state_of_a_run_is_recognised(folder):
    assert state_of(folder.config).status == "not started"
    with folder.locked():
        folder.append_row({"step": 4, "epoch": 0.5, "seconds": 1.5, "train_loss": 0.25, "val_acc": 0.5})
        with folder.metrics.open("a") as file:
            file.write('{"step": 5, "half')
        state = state_of(folder.config)
        assert (state.status, state.label, state.step, state.total) == ("running", "sgd lr=0.1 s3", 4, 9)
    assert state_of(folder.config).status == "stopped"
    folder.write_summary({"status": "diverged"})
    assert state_of(folder.config).status == "diverged"


def test_a_run_is_called_as_in_the_report(folder):
    """Without the settings that came later and have their neutral default."""
    optimizer = {"name": "sibp", "lr": 0.1, "solver": "cg:5", **LATER_OF_OPTIMIZER["sibp"]}
    assert state_of({**folder.config, "optimizer": optimizer}).label == "sibp cg:5 lr=0.1 s3"


def test_steps_of_a_run_limited_by_epochs_come_from_its_rows(folder):
    config = {**folder.config, "max_steps": None, "epochs": 3}
    other = RunFolder(config)
    other.path.mkdir()
    assert state_of(config).total is None
    other.append_row({"step": 4, "epoch": 0.5})
    assert state_of(config).total == 24


def test_reading_the_state_does_not_lock_a_run(folder):
    """A reader holds the lock briefly; a writer that waits gets it afterwards."""
    folder.path.mkdir()
    with open(folder.path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.01, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        with folder.locked():
            pass


def test_the_status_of_a_sweep_has_a_summary_and_one_line_per_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "seed=0,1"]) == 0
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([*SMALL, "seed=0,1,2", "--status"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "3 runs: 2 completed, 1 not started"
    assert lines[0].startswith("completed   sgd lr=0.1 s0  step 4/4, train loss ")
    assert lines[2] == "not started sgd lr=0.1 s2"
    assert sorted(tmp_path.rglob("*")) == before


def counted(outcomes: list[str], total: int, seconds: float, monkeypatch) -> Progress:
    now = [0.0]
    monkeypatch.setattr(showing.time, "monotonic", lambda: now[0])
    progress = Progress(total)
    for status in outcomes:
        now[0] += seconds
        kept = status == "skipped"
        progress.ended(Outcome(status, "", RunFolder({"run_root": "x"}), kept=kept), "a line", good=True)
    return progress


def test_progress_shows_counts_and_remaining_time(monkeypatch, capsys):
    """Five of seven took 40 s each; skipped ones cost nothing, so 18 more take 18 x 56 s."""
    outcomes = ["completed"] * 3 + ["diverged"] * 2 + ["skipped"] * 2
    assert counted(outcomes, 25, 40.0, monkeypatch).line() == "7/25 runs, 2 diverged, about 17 min left"
    assert counted(["skipped"], 3, 1.0, monkeypatch).line() == "1/3 runs"
    assert counted(["completed", "failed"], 2, 1.0, monkeypatch).line() == "2/2 runs, 1 failed"


def test_without_a_terminal_progress_is_an_occasional_line(monkeypatch, capsys):
    counted(["completed"] * 10, 10, 8.0, monkeypatch)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["a line"] * 10
    assert [line.split()[0] for line in err.splitlines()] == ["1/10", "5/10", "9/10"]  # 30 s or more apart


def test_a_single_run_has_no_progress_line(monkeypatch, capsys):
    counted(["completed"], 1, 8.0, monkeypatch)
    assert capsys.readouterr().err == ""


def test_durations_are_short():
    assert [duration(s) for s in (0.525, 42.4, 119, 720, 7200)] == ["0.53 s", "42 s", "119 s", "12 min", "2.0 h"]


def test_a_terminal_shows_a_table_of_running_jobs(make_config, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(3)
    folders = [run(make_config(seed=seed)).folder for seed in (0, 1)]
    progress.look([folder.config for folder in folders])
    progress.ended(Outcome("completed", "", folders[0]), "completed the first", good=True)
    progress.close()
    out, err = capsys.readouterr()
    assert "completed the first" in out
    for text in ("0/3 runs", "sgd lr=0.1 momentum=0.9 s0  step 20/20, train loss ", "momentum=0.9 s1  step 20/20"):
        assert text in err


def test_a_short_run_imports_no_compiler_and_no_unused_modules(tmp_path):
    code = (
        "import sys\nfrom sibp.train import main\n"
        f"assert main('epochs=null max_steps=1 threads=1 run_root={tmp_path}'.split()) == 0\n"
        "heavy = ('sklearn', 'torchvision', 'matplotlib', 'plotly', 'torch._dynamo', 'pandas')\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_optimizers_are_hidden_from_a_loaded_compiler():
    import torch._dynamo

    import_no_compiler()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    optimizer.zero_grad()
    method = torch.optim.Optimizer.zero_grad.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    assert method.__dynamo_disable._torchdynamo_disable
