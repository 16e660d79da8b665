"""Runs survive closed streams, signals, full disks, dying processes and damaged files."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import pytest
import torch
from disturbed import fail_at

from sibp.experiment.loop import Trainer
from sibp.experiment.runner import run
from sibp.experiment.signals import stop_on_signals
from sibp.runs.folder import RunFolder
from sibp.runs.output import Forgiving, forgiving_output
from sibp.train import main
from sibp.tune import main as tune

pytestmark = pytest.mark.slow

SMALL = ["optimizer=sgd", "model.hidden=[8]", "epochs=null", "max_steps=4", "tensorboard=false", "threads=1"]


class Broken(io.TextIOWrapper):
    """A stream whose reader disappears, or whose disk fills up, after some writes."""

    def __init__(self, writes: int, error: OSError):
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.left, self.error, self.texts = writes, error, []

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        self.texts.append(text)
        return len(text)


ERRORS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "Input/output error")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__ + str(error.errno))
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_unwritable_stream_stops_nothing(name, error, tmp_path, monkeypatch):
    stream = Broken(1, error)
    monkeypatch.setattr(sys, name, stream)
    words = [*SMALL, "-m", "seed=0,1,2", "optimizer.lr=0.1,1e30", f"run_root={tmp_path / 'runs'}"]
    assert main(words) == 3
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 6
    assert len(stream.texts) == 1


def test_a_stream_of_another_encoding_gets_escapes(tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([*SMALL, f"run_root={tmp_path / 'läufe'}"]) == 0
    stream.flush()
    assert b"l\\xe4ufe" in stream.buffer.getvalue()


def test_without_streams_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main([*SMALL, f"run_root={tmp_path / 'runs'}", "progress=true"]) == 0


def test_output_buffered_for_a_lost_stream_is_not_written_at_exit(tmp_path):
    """The interpreter flushes at exit, and would exit with code 120 if that failed."""
    code = "import sys\nfrom sibp.runs.output import forgiving_output\nwith forgiving_output():\n    print('x' * 9)\n"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_streams_are_restored():
    before = sys.stdout, sys.stderr
    with forgiving_output():
        assert isinstance(sys.stdout, Forgiving)
    assert (sys.stdout, sys.stderr) == before


PLACES = {
    "loading a checkpoint": ("sibp.experiment.loop.load_checkpoint", {}),
    "building the trainer": ("sibp.experiment.runner.build_model", {}),
    "test metrics": ("sibp.experiment.runner._test_metrics", {}),
    "the results": ("sibp.experiment.runner._results", {}),
    "the last of the board": ("sibp.experiment.loop.Trainer.finish", {}),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_exception_of_one_job_never_ends_the_sweep(place, tmp_path, monkeypatch, capsys):
    """In the second of three jobs, whatever it is doing."""
    name, _ = PLACES[place]
    from pkgutil import resolve_name

    owner, _, attribute = name.rpartition(".")
    original = getattr(resolve_name(owner), attribute)
    under_way: list[int] = []

    def raising(*args, **kwargs):
        if under_way and under_way[-1] == 1:
            raise KeyError("no such thing")
        return original(*args, **kwargs)

    def noting_run(config):
        under_way.append(config["seed"])
        return run(config)

    monkeypatch.setattr(name, raising)
    monkeypatch.setattr("sibp.experiment.runner.run", noting_run)
    assert main([*SMALL, "-m", "seed=0,1,2", f"run_root={tmp_path / 'runs'}"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "3 runs: 2 completed, 0 diverged, 1 failed, 0 skipped"
    assert "KeyError: 'no such thing'" in err
    assert "Traceback" not in err
    failed = [path for path in tmp_path.glob("runs/*/summary.json") if '"failed"' in path.read_text()]
    assert len(failed) == 1


def test_failing_to_add_test_metrics_keeps_the_result(make_config, monkeypatch):
    folder = run(make_config(evaluate_test=False)).folder
    before = folder.summary()

    def fail(*_):
        raise RuntimeError("no test data today")

    monkeypatch.setattr("sibp.experiment.runner._test_metrics", fail)
    outcome = run(make_config(evaluate_test=True))
    assert (outcome.status, outcome.message) == ("failed", "RuntimeError: no test data today")
    assert folder.summary() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_and_the_same_command_resumes(number, make_config, monkeypatch):
    config = make_config()
    fail_at(monkeypatch, 13, lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # the parent process may ignore it
    try:
        outcome = run(config)
    finally:
        signal.signal(number, before)
    assert (outcome.status, outcome.folder.summary()) == ("interrupted", None)
    assert torch.load(outcome.folder.checkpoint, weights_only=True)["step"] == 14
    assert run(config).status == "completed"


def test_a_second_signal_stops_immediately():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_ignored_by_nohup_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.made
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def interruptible():
    """Processes started here can be interrupted, although shells let what they start in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sibp.train", *SMALL], "Interrupted before anything was trained."),
        (["sibp", "bench", "step"], "Interrupted."),
    ],
)
def test_ctrl_c_while_a_command_starts_is_one_sentence(words, said, tmp_path):
    """During the import of torch."""
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        maps = Path(f"/proc/{child.pid}/maps")
        while "libtorch_cpu" not in maps.read_text():
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert (child.returncode, out, err) == (130, "", f"{said}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_on_a_disk_that_cannot_be_written_is_skipped(make_config, monkeypatch):
    config = make_config()
    folder = run(config).folder
    (folder.path / ".lock").unlink()

    def no_lock(self):
        raise AssertionError("nothing is to be opened for writing")

    monkeypatch.setattr(RunFolder, "locked", no_lock)
    assert run(config).status == "skipped"


def test_killing_a_sweep_ends_its_processes(tmp_path):
    """They stop at once and write a checkpoint."""
    words = [*SMALL, "max_steps=1000000", "-m", "seed=0,1", "hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=2"]
    words.append(f"run_root={tmp_path / 'runs'}")
    child = children.start(children.sweep, words, tmp_path / "out", tmp_path / "started", None)
    while len(list(tmp_path.glob("runs/*/metrics.jsonl"))) < 2:
        assert child.is_alive()
        time.sleep(0.05)
    workers = [int(path.read_text().split()[1]) for path in tmp_path.glob("runs/*/.lock")]
    assert len(workers) == 2
    child.kill()
    child.join()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.05)  # the test's own limit is the time that they have
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 2
    assert list(tmp_path.glob("runs/*/summary.json")) == []


ROWS = {
    "emptied": "",
    "numbers": "1\n2\n3\n",
    "a word": '{"step": 0, "seconds": 0, "val_acc": "good"}\n',
    "half": '{"st',
}


@pytest.mark.parametrize("content", ROWS)
def test_a_finished_run_with_damaged_rows_is_named_and_left_as_it_is(content, make_config):
    config = make_config(evaluate_test=False)
    folder = run(config).folder
    folder.metrics.write_text(ROWS[content])
    for evaluate_test in (False, True):
        outcome = run({**config, "evaluate_test": evaluate_test})
        assert outcome.status == "failed"
        assert "force=true trains the run again" in outcome.message
    assert folder.metrics.read_text() == ROWS[content]


SUMMARIES = {
    "half": '{"status": "completed"}',
    "nested": '{"status": {"status": "completed"}}',
    "no numbers": '{"status": "completed", "steps": "20", "final": [], "seconds": 3}',
    "deep": "[" * 100_000,
    "not text": "\udcff",
}


@pytest.mark.parametrize("content", SUMMARIES)
def test_an_invalid_summary_is_rewritten(content, make_config):
    config = make_config()
    folder = run(config).folder
    before = folder.summary()
    (folder.path / "summary.json").write_bytes(SUMMARIES[content].encode("utf-8", "surrogateescape"))
    assert run(config).status == "completed"
    assert (folder.summary() or {})["final"] == (before or {})["final"]


def test_arbitrary_bytes_in_a_lock_are_harmless(make_config):
    config = make_config()
    folder = RunFolder(config)
    folder.path.mkdir(parents=True)
    (folder.path / ".lock").write_bytes(b"\xff\xfe")
    with folder.locked():
        (folder.path / ".lock").write_bytes(b"\xff\xfe")
        outcome = run(config)
    assert outcome.status == "busy"
    assert run(config).status == "completed"


@pytest.mark.parametrize("content", ROWS)
def test_tuning_counts_a_trial_with_damaged_rows_as_failed(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep=digits_quick", "epochs=null", "max_steps=2", "threads=1", "tensorboard=false", "run_root=r"]
    assert tune(words) == 0
    (first, *_) = sorted(Path("r/trials").iterdir())
    (first / "metrics.jsonl").write_text(ROWS[content])
    assert tune(words) == 1
    record = json.loads(Path("r/tuning.json").read_text())
    runs = [run for method in record["methods"] for trial in method["trials"] for run in trial["runs"]]
    failed = [run for run in runs if run["status"] == "failed"]
    assert [Path(run["folder"]).name for run in failed] == [first.name]
    assert "force=true" in failed[0]["reason"]


def test_a_run_whose_weights_cannot_change_has_diverged(make_config):
    """With a step this long no layer has a finite solution, so the initial weights stay."""
    for optimizer in ("sibp", "proxbp"):
        config = make_config(optimizer)
        config["optimizer"]["lr"] = 1e30
        with pytest.warns(RuntimeWarning, match="has no finite solution"):
            outcome = run(config)
        assert outcome.status == "diverged", optimizer
        assert "lower lr" in outcome.message or "loss became" in outcome.message
        assert (outcome.folder.summary() or {})["diverged_step"] == 4  # the first logged row


def test_evaluation_uses_eval_mode(make_config, monkeypatch):
    modes = []
    original = Trainer.evaluate

    def evaluate(self, split, limit=None):
        hook = self.model.register_forward_hook(lambda module, *_: modes.append(module.training))
        try:
            return original(self, split, limit)
        finally:
            hook.remove()
            modes.append(("after", self.model.training))

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert run(make_config()).status == "completed"
    assert False in modes
    assert True not in modes
    assert {mode for mode in modes if isinstance(mode, tuple)} == {("after", True)}


def test_an_accuracy_equal_to_the_target_meets_it(make_config):
    whole = run(make_config(target_val_acc=None)).folder
    rows = whole.rows()
    target = max(row["val_acc"] for row in rows)
    first = next(row["step"] for row in rows if row["val_acc"] == target)
    summary = run(make_config(target_val_acc=target)).folder.summary() or {}
    assert summary["steps_to_target"] == first


def test_clearing_a_folder_removes_its_tensorboard_files(make_config):
    config = make_config(tensorboard=True)
    folder = run(config).folder
    (folder.board / "stray").write_text("of the run before")
    with folder.locked():
        folder.clear()
    assert not folder.board.exists()
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "config.yaml"]
