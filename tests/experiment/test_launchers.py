"""Sweeps in other processes: neither edits of files nor dying processes change their results."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from sibp.experiment import compose, workers
from sibp.runs.folder import RunFolder
from sibp.train import main

pytestmark = pytest.mark.slow

SMALL = ["optimizer=sgd", "model.hidden=[8]", "max_steps=6", "log_every=3", "tensorboard=false", "threads=1"]
LAUNCHERS = ("basic", "sibp_joblib", "sibp_submitit_local")
HERE = ["hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ that a test may modify."""
    shutil.copytree(compose.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(compose, "CONFIGS", tmp_path / "configs")
    return tmp_path / "configs"


@pytest.mark.parametrize("launcher", [[], HERE])
def test_files_edited_during_a_sweep_do_not_affect_its_jobs(launcher, own_configs, monkeypatch):
    def edit() -> None:
        (own_configs / "optimizer" / "sgd.yaml").write_text("name: sgd\nlr: 0.9\n")
        (own_configs / "config.yaml").write_text("broken: [")

    original = RunFolder.check_place  # called at the start of every run, and by the sweep before its first run

    def check_place(self):
        original(self)
        edit()

    monkeypatch.setattr(RunFolder, "check_place", check_place)
    assert main([*SMALL, "-m", "seed=0,1,2", *launcher]) == 0
    folders = sorted(Path("runs").glob("digits-*"))
    assert len(folders) == 3
    for folder in folders:
        assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] == 0.1


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_a_launchers_processes_are_reported_like_a_single_process(launcher, capfd):
    assert main([*SMALL, "-m", "optimizer.lr=0.1,1e30", f"hydra/launcher={launcher}"]) == 3
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["completed", "2"]
    assert out.splitlines()[-1] == "2 runs: 1 completed, 1 diverged, 0 failed, 0 skipped"
    assert [line.split()[0] for line in err.splitlines() if not line.startswith("1/2 runs")] == ["diverged"]
    assert not Path("runs/.sweep").exists() or list(Path("runs/.sweep").iterdir()) == []
    assert len(list(Path("runs").glob("*/summary.json"))) == 2
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_a_process_that_dies_loses_only_its_run(monkeypatch, capsys):
    """Stands for the kernel's out-of-memory killer: kills as soon as the first of four runs has a checkpoint."""
    original, killed = workers._start, []

    def start(context, job, at_once):
        process = original(context, job, at_once)
        if job["seed"] == 1:
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)
        return process

    monkeypatch.setattr(workers, "_start", start)
    words = [*SMALL, "-m", "seed=0,1,2,3", "hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=2"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "4 runs: 3 completed, 0 diverged, 1 failed, 0 skipped"
    (line,) = [line for line in err.splitlines() if line.startswith("failed")]
    assert "its process died (signal SIGKILL" in line
    assert len(killed) == 1
    monkeypatch.undo()


WRONG = {
    "hydra.launcher._target_=os.system": "hydra/launcher must be one of: basic, sibp_joblib",
    "+hydra.launcher.x={_target_:os.system}": "hydra/launcher must be one of: basic, sibp_joblib",
    "+hydra.callbacks.x._target_=os.system": "only its launcher's can be changed",
    "hydra.searchpath=[file:///tmp]": "name the folder of your configs by --config-dir=DIR",
    "hydra/sweeper=basic": "only its launcher's can be changed",
    "hydra/launcher=slurm": "This launcher is not installed",
}


@pytest.mark.parametrize("word", WRONG)
def test_no_override_makes_hydra_load_code(word, capsys):
    assert main([*SMALL, "-m", "seed=0,1", "hydra/launcher=sibp_joblib", word]) == 2
    error = capsys.readouterr().err
    assert WRONG[word] in error
    assert len(error.splitlines()) == 1
    assert list(Path().glob("runs/digits-*")) == []


@pytest.mark.parametrize("launcher", [path.stem for path in (compose.CONFIGS / "hydra" / "launcher").glob("*")])
def test_every_launcher_composes(launcher):
    config = compose.hydra_config([f"hydra/launcher={launcher}"])
    assert config.hydra.runtime.choices["hydra/launcher"] == launcher
