"""The command line: its error messages, sweeps with failing runs, and exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sibp.experiment.compose import CONFIGS, compose, plan
from sibp.experiment.loop import Trainer
from sibp.experiment.models import build_model
from sibp.experiment.settings import Settings
from sibp.runs.errors import UserError
from sibp.train import main

SMALL = [
    "optimizer=sgd",
    "model.hidden=[8]",
    "max_steps=6",
    "log_every=3",
    "tensorboard=false",
    "threads=1",
    "device=cpu",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files_outside_runs() -> list[str]:
    return [str(path) for path in Path().iterdir() if path.name != "runs"]


def test_a_run_writes_only_its_folder(capsys):
    assert main(SMALL) == 0
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert str(folder) in capsys.readouterr().out
    assert files_outside_runs() == []
    assert main(SMALL) == 0
    assert capsys.readouterr().out.startswith("skipped")


@pytest.mark.slow
def test_the_module_runs_as_a_program_and_is_quiet_without_a_terminal(tmp_path):
    done = subprocess.run([sys.executable, "-m", "sibp.train", *SMALL], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    wrong = subprocess.run([sys.executable, "-m", "sibp.train", "seeed=1"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("There is no setting seeed; did you mean seed?")


def options(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))


MISTAKES = {
    "optimizer=adm": f"There is no optimizer 'adm'; choose one of: {options('optimizer')}",
    "experiment=mnist": f"There is no experiment 'mnist'; choose one of: {options('experiment')}",
    "optimzer=adam": "There is no setting optimzer; did you mean optimizer",
    "batchsize=3": "There is no setting batchsize; did you mean batch_size?",
    "lr=3": "There is no setting lr; did you mean optimizer.lr?",
    "optimizer.prox_weight=1": "The settings here are: optimizer.name, optimizer.lr, optimizer.momentum",
    "optimizer=sgd,adam": "optimizer=sgd,adam gives several values: add -m",
    "seed": "seed cannot be read: write key=value",
    "+foo=1": "There is no setting foo",
    "~seed": "~seed would remove a setting",
    "seed=${foo}": "foo",
    "run_root=/dev/null/x": "run_root=/dev/null/x cannot be used",
    "--experimental-rerun=x": "would open a pickle",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_an_invalid_config_is_one_sentence_and_no_run(word, capsys):
    assert main([*SMALL, word]) == 2
    error = capsys.readouterr().err
    assert MISTAKES[word] in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()


FAILURES = {
    "model.hidden=[0]": "model.hidden=[0] is not possible: every hidden layer needs a width of 1 or more",
    "model.hidden=[-3]": "model.hidden=[-3] is not possible",
    "model.hidden=5": "model.hidden=5 is not possible: give a list of whole numbers such as [500]",
    "model.name=cnn": "There is no model 'cnn'; choose one of: mlp",
    "model.init=zeros": "choose one of: default, normal",
    "model.init=normal": "give a positive model.init_std",
    "model.init_std=0.1": "no effect without model.init=normal",
    "optimizer.name=builtins.exec": "There is no optimizer 'builtins.exec'; choose one of: sgd, adam, ",
    "+optimizer._target_=os.system": "There is no setting optimizer._target_",
    "optimizer.lr=-1": "optimizer=sgd cannot be built",
    "optimizer.lr=fast": "optimizer.lr=fast is not possible: give a number.",
    "optimizer.nesterov=1": "optimizer.nesterov=1 is not possible: give true or false",
    "dataset.name=svhn": "There is no dataset 'svhn'; choose one of: digits, mnist, fashion_mnist, cifar10",
    "dataset=mnist": "set data_root=... to the folder that holds them, or add download=true",
    "batch_size=5000": "batch_size=5000 is more than the 1297 training samples",
    "batch_size=0": "batch_size=0 is not possible: give a whole number of 1 or more",
    "batch_size=true": "batch_size=true is not possible: give a whole number",
    "batch_size=2.5": "batch_size=2.5 is not possible: give a whole number",
    "seed=-1": "seed=-1 is not possible",
    "schedule=step": "schedule=step is not known; choose one of: constant, linear, cosine",
    "decays=momentum": "decays=momentum is not known; choose one of: lr, prox_weight",
    "decays=prox_weight": "decays=prox_weight has no effect without schedule=... or warmup_steps=...",
    "warmup_steps=-1": "warmup_steps=-1 is not possible: give a whole number of 0 or more",
    "label_noise=40": "label_noise=40.0 is not a fraction: give a number between 0 and 1",
    "target_val_acc=95": "is not an accuracy",
    "device=tpu": "device=tpu is not available: choose one of: auto, cpu, cuda",
}


@pytest.mark.parametrize("word", FAILURES)
def test_an_invalid_run_is_one_sentence_and_leaves_no_folder(word, capsys):
    assert main([*SMALL, word]) == 2
    error = capsys.readouterr().err
    assert FAILURES[word] in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_growing_proximal_weight_needs_an_optimizer_with_one(capsys):
    assert main([*SMALL, "schedule=cosine", "decays=prox_weight"]) == 2
    assert "this optimizer has no prox_weight; say decays=lr" in capsys.readouterr().err


def test_a_run_without_epochs_and_steps_is_refused(capsys):
    assert main([*SMALL, "epochs=null", "max_steps=null"]) == 2
    assert "give epochs=... or max_steps=..." in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["sibp", "proxbp"])
@pytest.mark.parametrize("word", ["lr=-1", "prox_weight=0", "solver=magic"])
def test_invalid_values_of_a_proximal_optimizer_are_one_sentence(optimizer, word, capsys):
    assert main([*SMALL, f"optimizer={optimizer}", f"optimizer.{word}"]) == 2
    error = capsys.readouterr().err
    assert f"optimizer={optimizer} cannot be built" in error
    assert word.split("=")[1] in error


def test_a_diverged_run_exits_3_and_stays_diverged(capsys):
    words = [*SMALL, "optimizer.lr=1e30"]
    assert main(words) == 3
    assert "the training loss became" in capsys.readouterr().err
    assert main(words) == 3


def test_a_crash_exits_1_with_its_traceback_kept(monkeypatch, capsys):
    def explode(*args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("sibp.experiment.runner.build_optimizer", explode)
    assert main(SMALL) == 1
    assert "RuntimeError: boom" in capsys.readouterr().err
    (summary,) = Path("runs").glob("*/summary.json")
    assert "in explode" in json.loads(summary.read_text())["traceback"]


def test_a_sweep_continues_after_a_failed_job_and_reports_it(monkeypatch, capsys):
    def fail(settings: Settings) -> bool:
        return settings.optimizer["lr"] == 0.2

    original = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, another: 1 / 0 if fail(self.settings) else original(self, another))
    words = [*SMALL, "-m", "optimizer=sgd,adam", "optimizer.lr=0.2,1e30,0.1"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "6 runs: 2 completed, 2 diverged, 2 failed, 0 skipped"
    assert "ZeroDivisionError" in err
    monkeypatch.setattr(Trainer, "fit", original)
    assert main([*SMALL, "-m", "optimizer=sgd,adam", "optimizer.lr=0.1,0.2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs: 2 completed, 0 diverged, 0 failed, 2 skipped"
    assert main([*SMALL, "-m", "optimizer.lr=0.1,1e30"]) == 3
    assert files_outside_runs() == []


def test_an_error_in_any_job_stops_a_sweep_before_its_first_run(capsys):
    assert main([*SMALL, "-m", "optimizer=sgd,sibp", "optimizer.momentum=0.5"]) == 2
    assert "There is no setting optimizer.momentum" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_an_interrupted_sweep_stops_and_reports_what_is_left(monkeypatch, capsys):
    original = Trainer._train_step

    def train_step(self, indices):
        if self.settings.seed == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, indices)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    words = [*SMALL, "-m", "seed=0,1,2", "force=true"]
    assert main(words) == 130
    out, err = capsys.readouterr()
    assert "the same command without force=true resumes from there" in err
    assert err.splitlines()[-1] == "Interrupted: the same command without force=true resumes from here."
    expected = "3 runs: 1 completed, 0 diverged, 0 failed, 0 skipped, 1 interrupted, 1 not ended"
    assert out.splitlines()[-1] == expected
    monkeypatch.undo()


def test_help_shows_the_groups_the_settings_and_an_example(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for part in (f"optimizer: {options('optimizer')}", f"experiment: {options('experiment')}", "batch_size=100"):
        assert part in text
    assert "sibp train -m" in text


def test_settings_can_be_shown_without_training(capsys):
    assert main(["--cfg", "job", "optimizer=adam"]) == 0
    assert "name: adam" in capsys.readouterr().out
    assert not Path("runs").exists()


EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
GROUP_OPTIONS = [
    f"{group}={path.stem}"
    for group in ("dataset", "model", "optimizer")
    for path in sorted((CONFIGS / group).glob("*.yaml"))
]


@pytest.mark.parametrize("word", [f"experiment={name}" for name in EXPERIMENTS] + GROUP_OPTIONS)
def test_every_config_composes_into_valid_settings(word):
    Settings.from_config(compose([word]))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_line_overrides_an_experiment(experiment):
    words = [f"experiment={experiment}", "optimizer=adam", "model=mlp", "batch_size=7", "model.hidden=[3]"]
    config = compose(words)
    assert config["optimizer"]["name"] == "adam"
    assert (config["batch_size"], config["model"]["hidden"]) == (7, [3])


def test_mnist_mlp_is_the_papers_first_comparison():
    config = compose(["experiment=mnist_mlp"])
    assert config["dataset"] == {"name": "mnist"}
    assert (config["batch_size"], config["epochs"]) == (100, 1)
    assert Settings.from_config(config).total_steps(55000 // config["batch_size"]) == 550
    model = build_model(config["model"], (1, 28, 28), 10, 0)
    assert [tuple(p.shape) for p in model.parameters()] == [(500, 784), (500,), (10, 500), (10,)]
    assert next(model.parameters()).std().item() == pytest.approx(0.05, rel=0.01)


def test_a_sweep_is_planned_in_the_order_of_its_overrides():
    configs = plan(["optimizer=sgd,adam", "seed=0,1", "epochs=2"], sweep=True)
    assert [(c["optimizer"]["name"], c["seed"], c["epochs"]) for c in configs] == [
        ("sgd", 0, 2),
        ("sgd", 1, 2),
        ("adam", 0, 2),
        ("adam", 1, 2),
    ]
    with pytest.raises(UserError, match="cannot be read"):
        plan(["seed=[1"], sweep=True)


@pytest.mark.parametrize(("epochs", "max_steps", "total"), [(2, None, 20), (None, 7, 7), (2, 7, 7), (1, 70, 10)])
def test_a_run_ends_at_epochs_or_steps_whichever_comes_first(make_config, epochs, max_steps, total):
    settings = Settings.from_config(make_config(epochs=epochs, max_steps=max_steps))
    assert settings.total_steps(steps_per_epoch=10) == total


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_shipped_experiments_evaluate_early_and_for_at_most_a_third_of_the_time(experiment):
    """Counted in forward passes of images: a gradient step costs three, a step of SIBP more."""
    sizes = {"digits": (1297, 250), "mnist": (55000, 5000), "cifar10": (45000, 5000), "python_docs": (7173, 398)}
    config = compose([f"experiment={experiment}"])
    train, val = sizes[config["dataset"]["name"]]
    settings = Settings.from_config(config)
    assert settings.log_early is not None
    assert 5 <= settings.log_early <= 10
    total = settings.total_steps(train // settings.batch_size)
    steps = {0, total, *range(0, total, settings.log_every), *(settings.log_early * i for i in range(1, 6))}
    images = min(val, settings.eval_val_limit or val) + min(train, settings.eval_train_limit or train)
    evaluated, trained = len(steps) * images, 3 * total * settings.batch_size
    assert evaluated < trained / 3
