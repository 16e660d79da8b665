"""A mistake in any job of a command gives one sentence and exit code 2; nothing is trained or written."""

from pathlib import Path

import pytest
import torch

from sibp.experiment.compose import CONFIGS
from sibp.experiment.loop import Trainer
from sibp.experiment.models import MODELS, ModelSpec
from sibp.experiment.runner import run
from sibp.train import main
from sibp.tune import main as tune

SMALL = ["optimizer=sgd", "model.hidden=[8]", "epochs=null", "max_steps=2", "tensorboard=false", "threads=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error message of a command line."""
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert list(Path().iterdir()) == []
    return err


# One or both of two jobs are invalid; the values are what the error message must contain.
SWEEPS = {
    "optimizer=sgd,adam batchsize=3": "did you mean batch_size?",
    "batch_size=50,0": "batch_size=0 is not possible",
    "train_limit=50 batch_size=50,60": "batch_size=60 is more than the 50 training samples",
    "batch_size=50,5000": "batch_size=5000 is more than the 1297 training samples",
    "seed=0,18446744073709551616": "seed=18446744073709551616 is not possible",
    "optimizer.lr=0.1,nan": "optimizer.lr=NaN is not possible: give a finite number",
    "optimizer.lr=0.1,fast": "optimizer.lr=fast is not possible: give a number",
    "label_noise=0,1.5": "label_noise=1.5 is not a fraction",
    "threads=1,100000": "threads=100000 is not possible",
    "threads=1,2147483648": "threads=2147483648 is not possible",
    "device=cpu,tpu": "device=tpu is not available",
    "model.hidden=[8],[0]": "model.hidden=[0] is not possible",
    "dataset=digits,cifar10": "CIFAR-10 is missing",
    "epochs=1,-1": "epochs=-1 is not possible",
    "run_root=a,/dev/null/x": "run_root=/dev/null/x cannot be used",
    "optimizer=sibp optimizer.solver=cg:3,cg5": "cg5",
    "optimizer=sgd,sibp optimizer.prox_weight=1": "This applies to 1 of 2 jobs, such as optimizer=sgd.",
    "optimizer=lbfgs optimizer.history=5,0": "history: 0",
    "optimizer=sgd,sipb": "did you mean optimizer=sibp?",
    "optimizer=glob(zz*)": "selects no run",
    "optimizer=sgd decays=lr,prox_weight schedule=cosine": "this optimizer has no prox_weight",
    "seed=0,1 hydra/launcher=sibp_joblib hydra.launcher.n_jobs=0": "hydra.launcher.n_jobs=0 is not possible",
    "seed=0,1 hydra/launcher=sibp_joblib hydra.launcher.n_job=2": "did you mean hydra.launcher.n_jobs?",
    "seed=0,1 hydra.launcher.n_jobs=2": "hydra.launcher.n_jobs=2 has no effect without hydra/launcher=...",
    "optimizer=sgd,null": "optimizer=null gives no valid config",
    "seed=0,${nope}": "gives no valid config: Interpolation key 'nope' not found. This applies to 1 of 2 jobs",
    f"run_root=a,{'b' * 300}": "cannot be used (/: File name too long)",
}


@pytest.mark.parametrize("words", SWEEPS)
def test_one_invalid_job_refuses_the_sweep(words, capsys):
    assert SWEEPS[words] in refused([*SMALL, "-m", *words.split()], capsys)


SINGLE = {
    "=3": "=3 names no setting: write key=value",
    "hydra/launcher=sibp_joblib": "hydra/launcher=sibp_joblib has no effect on a single run: add -m, or leave it out.",
    "run_root=null": "run_root=null is not possible",
    "run_root=5": "run_root=5 is not possible",
    "run_root=true": "run_root=true is not possible",
    "run_root=a\0b": "it contains a NUL byte",
    "learning_rate=1": "did you mean optimizer.lr?",
    "optimizer.learning_rate=1": "did you mean optimizer.lr?",
    "optimizer={a:1}": "optimizer",
    "model.hidden=" + "[" * 500 + "]" * 500: "is nested too deeply",
    "batch_size=" + "9" * 5000: "batch_size",
    "optimizer.lr=" + "9" * 400: "give a finite number",
    "max_steps=9223372036854775808": "the largest whole number is 9223372036854775807",
    "model.hidden=[999999999]": "model=mlp with model.hidden=[999999999] has 7.5e+10 weights: training takes 900 GB",
    "model.hidden=[9000000000000000000]": "has 6.75e+20 weights",
    "optimizer.lr='0.1'": "optimizer.lr=0.1 is not possible: give a number without quotes.",
    "log_early=0": "log_early=0 is not possible",
    "role=other": "role=other is not known",
    "run_root=": "run_root= is empty",
    "data_root=": "data_root= is empty",
    f"run_root={'a' * 300}": "cannot be used (/: File name too long)",
    f"run_root={'a/' * 3000}": "cannot be used (/: File name too long)",
    f"run_root=/tmp/{'a/' * 2035}": "cannot be used (/: File name too long)",  # too long with the run's name appended
    "run_root=choice(a,b)": "run_root=choice(a,b) gives several values: add -m",
    "optimizer=null": "optimizer=null is not possible: give a name, or leave it out.",
    "seed=${nope}": "seed=${nope} gives no valid config: Interpolation key 'nope' not found",
    "optimizer.solver=cg:3": "There is no setting optimizer.solver. The settings here are: optimizer.name",
    "optimizer.momentun=0": "There is no setting optimizer.momentun; did you mean optimizer.momentum?",
}


@pytest.mark.parametrize("word", SINGLE, ids=lambda word: word[:20].replace("\0", "0"))
def test_an_invalid_run_leaves_no_folder(word, capsys):
    error = refused([*SMALL, word], capsys)
    assert SINGLE[word] in error
    assert len(error) < 900


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"]])
def test_a_folder_that_cannot_be_written_is_reported_once_and_before_training(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "r").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "r")  # whoever runs the tests may write
    assert main([*SMALL, "run_root=r", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "run_root=r cannot be used (r: it cannot be written to): give a folder that can be written." in err
    assert list((tmp_path / "r").iterdir()) == []


def test_a_sweep_of_one_wrong_run_is_wrong_input(capsys):
    assert main([*SMALL, "-m", "optimizer.lr=1e400"]) == 2
    assert "optimizer.lr=Infinity is not possible: give a finite number." in capsys.readouterr().err


def test_a_user_model_too_large_for_memory_is_one_sentence(make_config, monkeypatch):
    """The number of weights is unknown until torch allocates them."""

    def wide(shape: tuple[int, ...], classes: int, *, channels: int) -> torch.nn.Module:
        return torch.nn.Conv2d(1, channels, 5)

    monkeypatch.setitem(MODELS, "wide", ModelSpec(wide, flat=False))
    for channels in (10**14, 2**62):
        outcome = run(make_config(model={"name": "wide", "channels": channels}))
        assert outcome.wrong_input
        assert outcome.message == (
            "model=wide cannot be built: this machine has too little memory; "
            f"give smaller numbers than model.channels={channels}."
        )
        assert not outcome.folder.path.exists()


def test_a_setting_of_another_model_in_an_experiment_is_one_sentence(capsys):
    error = refused(["experiment=digits_quick", "model=lenet"], capsys)
    sentence = "There is no setting model.hidden; this model has no settings for an override or an experiment to give."
    assert sentence in error


def test_every_optimizer_requires_a_finite_learning_rate(capsys):
    names = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))
    for name, value in [*((name, "nan") for name in names), ("sgd", "inf"), ("sibp", "-inf")]:
        assert "optimizer.lr=" in refused([*SMALL, f"optimizer={name}", f"optimizer.lr={value}"], capsys)


def test_a_missing_gpu_is_reported(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch finds no NVIDIA GPU" in refused([*SMALL, "device=cuda"], capsys)


def test_a_fixed_key_of_all_swept_groups_is_accepted(capsys):
    """The default group is sibp, which has no momentum; the two that are swept have one."""
    words = [word for word in SMALL if word != "optimizer=sgd"]
    assert main([*words, "-m", "optimizer=sgd,nesterov", "optimizer.momentum=0.5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 runs: 2 completed")


def test_an_error_is_found_before_the_first_run_and_loses_no_finished_one(monkeypatch, capsys):
    assert main([*SMALL, "-m", "seed=0,1"]) == 0
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr(Trainer, "_train_step", lambda *_: pytest.fail("nothing is to be trained"))
    assert main([*SMALL, "-m", "seed=0,1,2", "batch_size=50,5000"]) == 2
    assert main([*SMALL, "-m", "seed=0,1"]) == 0
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    [
        "läufe",
        "a#b",
        "a=b",
        "a b",
        "a'b",
        'a"b',
        "x(y)",
        "[z]",
        "a:b",
        "{q}",
        "日本",
        "a&b;c",
        "-x",
        "1e3",
        "a\\",
        "ä\\\\",
    ],
)
def test_a_run_root_may_have_any_name(name, capsys):
    if name == "1e3":
        name = "./1e3"
    assert main([*SMALL, f"run_root={name}"]) == 0
    assert len(list(Path(name).glob("digits-*/summary.json"))) == 1
    assert main([*SMALL, "-m", "seed=0,1", f"run_root={name}"]) == 0
    assert len(list(Path(name).glob("digits-*/summary.json"))) == 2


def test_common_hydra_syntax_works(capsys):
    assert main([*SMALL, "-m", "optimizer=glob(sg*)", "seed=range(0,2)"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 runs: 2 completed")
    assert main(["--cfg", "job", "+experiment=digits_quick"]) == 0
    assert "- 64" in capsys.readouterr().out
    assert main([*SMALL, "+experiment=digits_quick", "max_steps=1"]) == 0


def test_user_configs_extend_the_projects(tmp_path, capsys):
    own = tmp_path / "own" / "optimizer" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("name: sgd\nlr: 0.3\nmomentum: 0.1\nnesterov: false\nweight_decay: 0.0\n")
    assert main([*SMALL, "--config-dir", "own", "optimizer=mine", "run_root=r"]) == 0
    assert main([*SMALL, "-m", "--config-dir", "own", "optimizer=mine,adam", "run_root=r"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 1 completed, 0 diverged, 0 failed, 1 skipped"


TUNES = {
    "data_root=null": "data_root=null is not possible",
    "dataset=cifar10": "CIFAR-10 is missing",
    "batch_size=5000": "batch_size=5000 is more than",
    "train_limit=20 --dry": "is more than the 20 training samples",
    "train_limit=20": "is more than the 20 training samples",
    "device=tpu": "device=tpu is not available",
    "role=final": "role=final is not possible",
}


@pytest.mark.parametrize("word", TUNES)
def test_tuning_checks_its_methods_on_the_sweeps_data(word, capsys):
    assert tune(["sweep=digits_quick", *word.split()]) == 2
    err = capsys.readouterr().err
    assert TUNES[word] in err
    assert len(err.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_overrides_of_tuning_may_stand_before_and_after_its_flag(capsys):
    assert tune(["sweep=digits_quick", "--dry", "threads=1", "run_root=k"]) == 0
    assert not Path("k").exists()
