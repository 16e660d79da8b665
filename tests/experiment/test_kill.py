"""Oracle: an undisturbed run. Whatever kills another, the same command completes it bit for bit."""

import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import pytest
from disturbed import assert_curves_are_the_rows, assert_same_end, crash, fail_at

from sibp.experiment.checkpoint import load_checkpoint
from sibp.experiment.runner import run
from sibp.runs.folder import RunFolder
from sibp.train import main

pytestmark = pytest.mark.slow

SHORT = {"max_steps": 6, "log_every": 2, "checkpoint_every": 3, "batch_size": 20, "tensorboard": True}
GRID = [
    "optimizer=sgd,sibp",
    "seed=0,1",
    "model.hidden=[8]",
    "epochs=null",
    "max_steps=90",
    "log_every=3",
    "checkpoint_every=5",
    "threads=1",
    "device=cpu",
]


def assert_ends_as(config, whole: RunFolder) -> None:
    outcome = run(config)
    assert outcome.status == "completed", outcome.message
    assert_same_end(outcome.folder, whole)
    assert_curves_are_the_rows(outcome.folder)


def test_killed_before_any_change_of_the_disk(make_config, tmp_path):
    whole = run(make_config(**SHORT, run_root=str(tmp_path / "whole"))).folder
    for number in itertools.count(1):
        config = make_config(**SHORT, run_root=str(tmp_path / f"{number}"))
        if children.exit_code(children.die_at_change, config, number) == 0:
            break
        assert_ends_as(config, whole)
    assert number > 30  # covers config, rows, two checkpoints, events and summary


def test_killed_before_any_change_while_force_deletes_the_old_run(make_config, tmp_path):
    whole = run(make_config(**SHORT, run_root=str(tmp_path / "whole"))).folder
    for number in itertools.count(1):
        config = make_config(**SHORT, run_root=str(tmp_path / f"{number}"))
        shutil.copytree(whole.path.parent, tmp_path / f"{number}")
        assert children.exit_code(children.die_at_change, {**config, "force": True}, number) == -signal.SIGKILL
        folder = RunFolder(config)
        deleted = not (folder.checkpoint.exists() or folder.metrics.exists() or folder.board.exists())
        if folder.summary() is None:
            assert_ends_as(config, whole)
        else:
            assert run(config).status == "skipped"
        if deleted:
            break
    assert number > 5


@pytest.fixture
def half(make_config, tmp_path, monkeypatch):
    """The config of a run that failed after its first checkpoint, in a folder ``half``, and one that did not."""
    config = make_config(**SHORT, run_root=str(tmp_path / "half"))
    fail_at(monkeypatch, 4, crash)
    assert run(config).status == "failed"
    return config, run({**config, "run_root": str(tmp_path / "whole")}).folder


# Limits below the size of each file: config, rows, checkpoint, events. The last exceeds all and causes no failure.
SIZES = (0, 10, 300, 500, 800, 2000, 4000, 6000, 8000, 10000, 12000, 10**6)


def test_a_full_disk_is_one_sentence_and_loses_nothing(half, tmp_path):
    config, whole = half
    ended = []
    for size in SIZES:
        small = {**config, "run_root": str(tmp_path / f"{size}")}
        shutil.copytree(tmp_path / "half", small["run_root"])
        receiver, sender = children.SERVER.Pipe(duplex=False)
        assert children.exit_code(children.write_no_file_beyond, size, small, sender) == 0
        status, message = receiver.recv()
        ended.append(status)
        if status != "completed":
            assert "cannot be read or written (File too large)" in message
            assert small["run_root"] in message
            assert "everything up to the last checkpoint is kept" in message
            kept = load_checkpoint(RunFolder(small))
            assert kept is not None
            assert kept["step"] in (3, 6)
            assert_ends_as(small, whole)
    assert ended == ["failed"] * (len(SIZES) - 1) + ["completed"]
    receiver, sender = children.SERVER.Pipe(duplex=False)
    assert children.exit_code(children.write_no_file_beyond, 0, whole.config, sender) == 0
    assert receiver.recv()[0] == "skipped"


def test_killed_while_writing(half, tmp_path):
    config, whole = half
    for size in SIZES[:-1]:
        small = {**config, "run_root": str(tmp_path / f"{size}")}
        shutil.copytree(tmp_path / "half", small["run_root"])
        assert children.exit_code(children.write_no_file_beyond, size, small, None) == -signal.SIGXFSZ
        assert_ends_as(small, whole)


@pytest.fixture(scope="module")
def whole_grid(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """The runs of the grid, never disturbed."""
    root = str(tmp_path_factory.mktemp("whole"))
    assert main([*GRID, "-m", f"run_root={root}"]) == 0
    return folders(root)


def folders(root: str) -> list[RunFolder]:
    found = []
    for path in sorted(Path(root).glob("digits-*")):
        folder = RunFolder({"run_root": root})
        folder.path, folder.metrics, folder.checkpoint = path, path / "metrics.jsonl", path / "checkpoint.pt"
        folder.board = path / "tb"
        found.append(folder)
    return found


def test_a_sweep_killed_at_random_times_ends_the_same(whole_grid, tmp_path):
    words, rng = [*GRID, "-m", f"run_root={tmp_path / 'runs'}"], random.Random(20261124)
    command = [sys.executable, "-m", "sibp.train", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as real:
        while not list(tmp_path.glob("runs/*/checkpoint.pt")):
            assert real.poll() is None
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        real.kill()
    assert real.returncode == -signal.SIGKILL
    for _ in range(8):
        child = children.start(children.sweep, words, tmp_path / "output", tmp_path / "started", None)
        child.join(rng.uniform(0.1, 0.4))
        child.kill()
        child.join()
    assert main(words) == 0
    ended = folders(str(tmp_path / "runs"))
    assert [folder.path.name for folder in ended] == [folder.path.name for folder in whole_grid]
    for folder, whole in zip(ended, whole_grid, strict=True):
        assert_same_end(folder, whole)
        assert_curves_are_the_rows(folder)


def test_two_sweeps_of_one_grid_train_every_run_once(whole_grid, tmp_path, capsys):
    words, barrier = [*GRID, "-m", f"run_root={tmp_path / 'runs'}"], children.SERVER.Barrier(2)
    outputs = [tmp_path / "a", tmp_path / "b"]
    pair = [children.start(children.sweep, words, output, tmp_path / "started", barrier) for output in outputs]
    for child in pair:
        child.join()
        assert child.exitcode in (0, 4)  # 4: the other was training one of them
    lines = [line for output in outputs for line in output.read_text().splitlines()]
    tallies = [line for line in lines if line.startswith("4 runs: ")]
    assert len(tallies) == 2
    assert sum(int(line.split("completed")[0].split()[-1]) for line in tallies) == 4
    assert all(" 0 diverged, 0 failed, " in line and "not ended" not in line for line in tallies)
    assert sorted((tmp_path / "started").read_text().split()) == [folder.path.name for folder in whole_grid]

    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs: 0 completed, 0 diverged, 0 failed, 4 skipped"
    for folder, whole in zip(folders(str(tmp_path / "runs")), whole_grid, strict=True):
        assert_same_end(folder, whole)
