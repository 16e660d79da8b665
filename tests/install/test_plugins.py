"""Optimizers, models and data sets in a user's own package."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sibp.analysis.comparison import compare
from sibp.experiment import data, models, optimizers
from sibp.report.__main__ import main as report
from sibp.runs.collect import collect
from sibp.train import main
from sibp.tune import main as tune

pytestmark = pytest.mark.slow

PLUGIN = '''
"""Half of SGD, a model of one layer, and images whose label is the brighter half."""

import torch
from torch import nn

from sibp.plugins import Data, Split, digest, register_dataset, register_model, register_optimizer


def half(model, *, lr: float):
    return torch.optim.SGD(model.parameters(), lr=lr / 2)


def flat(shape, classes, *, bias: bool):
    return nn.Sequential(nn.Linear(torch.Size(shape).numel(), classes, bias=bias))


def halves(data_root, download):
    images = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0, :2].sum((1, 2)) > images[:, 0, 2:].sum((1, 2))).long()
    parts = [Split(images[i : i + 100], labels[i : i + 100]) for i in (0, 100, 200)]
    return Data(*parts, shape=(1, 4, 4), classes=2, sha256=digest(images, labels))


register_optimizer("half", half)
register_model("flat", flat, flat=True)
register_dataset("halves", halves)
'''
ACTIVATION = '''
"""The hyperbolic tangent, by a function that nothing else knows of."""

import torch
from torch import nn

from sibp import register_activation
from sibp.plugins import name_activation


def wave(z):
    return 1 - 2 / (torch.exp(2 * z) + 1)


class Wave(nn.Module):
    def forward(self, z):
        return wave(z)


wave = register_activation(wave, wave)
name_activation("wave", Wave)
'''
CONFIGS = {
    "optimizer/half.yaml": "name: half\nlr: 0.1\n",
    "model/flat.yaml": "name: flat\nbias: true\n",
    "dataset/halves.yaml": "name: halves\n",
    "experiment/own.yaml": """
        # @package _global_
        defaults: [{override /dataset: halves}, {override /model: flat}, {override /optimizer: half}]
        plugins: [mine]
        batch_size: 20
        epochs: 2
        """,
    "sweep/own.yaml": """
        shared: [experiment=own]
        trials: 2
        tuning_seeds: [100]
        final_seeds: [0]
        methods:
          half: {overrides: [optimizer=half], grid: {lr: [0.1, 0.2]}}
          sgd: {overrides: [optimizer=sgd], grid: {lr: [0.1, 0.2]}}
        """,
}
QUICK = ["threads=1", "tensorboard=false", "device=cpu"]
OWN = ["--config-dir", "my configs", "experiment=own", *QUICK]


@pytest.fixture(autouse=True)
def _their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module and configs in the current folder, which is not on the path; undoes their registrations afterwards."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    for name, text in CONFIGS.items():
        path = Path("my configs") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    tables = optimizers.OPTIMIZERS, models.MODELS, models.ACTIVATIONS, data.DATASETS
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for name in ("mine", "broken", "taken", "waves"):
        sys.modules.pop(name, None)


def folders(root: str = "runs") -> list[Path]:
    return sorted(path for path in Path(root).iterdir() if path.name[0] != ".")


def sibp(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as installed, for which the current folder is not on the path."""
    project = str(Path(data.__file__).resolve().parents[2])
    here = {**os.environ, "PYTHONPATH": project}
    return subprocess.run([sys.executable, "-P", "-m", "sibp", *words], env=here, capture_output=True, text=True)


def test_plugins_are_trained_and_compared_by_the_commands(capsys):
    """In this process, in a launcher's, and in a report, without any warning."""
    done = sibp("train", "-m", *OWN, "seed=0,1", "hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=2")
    assert done.stdout.splitlines()[-1].startswith("2 runs: 2 completed"), done.stderr
    assert {line.partition(",")[0] for line in done.stderr.splitlines()} <= {"1/2 runs"}
    first, second = folders()
    assert first.name.startswith("halves-flat-half-lr0.1-s0-")
    assert second.name.startswith("halves-flat-half-lr0.1-s1-")
    assert yaml.safe_load((first / "config.yaml").read_text())["plugins"] == ["mine"]
    compared = sibp("report", "runs")
    assert (compared.returncode, compared.stderr) == (0, "")


def test_plugin_settings_are_passed_to_their_builders(capsys):
    """Half of SGD with twice its rate is SGD, to the last bit."""
    assert main(["-m", *OWN, "optimizer=half", "optimizer.lr=0.4"]) == 0
    assert main(["-m", *OWN, "optimizer=sgd", "optimizer.lr=0.2"]) == 0
    losses = [json.loads((folder / "summary.json").read_text())["final"]["train_loss"] for folder in folders()]
    assert len(losses) == 2
    assert losses[0] == losses[1] < 0.69


def test_plugins_are_tuned_by_a_separate_sweep(capsys):
    assert tune(["--config-dir", "my configs", "sweep=own", *QUICK]) == 0
    assert len(folders("runs/tuning/own/final")) == 2
    assert tune(["--config-dir", "my configs", "sweep=onw"]) == 2
    assert "did you mean own?" in capsys.readouterr().err


def test_their_activation_is_in_the_subproblems_of_the_model_that_names_it(capsys):
    """The steps are tanh's, which it computes; outside the subproblem they would differ."""
    Path("waves.py").write_text(ACTIVATION)
    losses = []
    for name in ("wave", "tanh"):
        words = ["optimizer=sibp", f"model.activation={name}", "model.hidden=[20]", "max_steps=5", f"run_root={name}"]
        assert main(["plugins=[waves]", *words, *QUICK]) == 0
        (folder,) = folders(name)
        losses.append(json.loads((folder / "summary.json").read_text())["final"]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert main(["plugins=[waves]", "model.activation=vawe", *QUICK]) == 2
    sentence = capsys.readouterr().err
    assert "choose one of: relu" in sentence
    assert "wave" in sentence


def test_overrides_may_also_name_the_module():
    words = [word for word in OWN if word != "experiment=own"]
    assert main([*words, "plugins=[mine]", "optimizer=half", "max_steps=2"]) == 0


def test_runs_of_plugins_are_compared_with_others():
    (Path("my configs") / "optimizer" / "half.yaml").write_text("name: half\nlr: 0.2\n")
    assert main([*QUICK, "max_steps=2", "optimizer=sgd"]) == 0
    assert main([*QUICK, "max_steps=2", "--config-dir", "my configs", "plugins=[mine]", "optimizer=half"]) == 0
    (problem,) = compare(collect([Path("runs")]).runs, None, None)
    assert [method.name for method in problem.methods] == ["sgd", "half"]


def test_other_modules_make_another_run():
    Path("others.py").touch()
    for plugins in ("[mine]", "[others]", "[]"):
        assert main([*QUICK, "max_steps=2", "optimizer=sgd", f"plugins={plugins}"]) == 0
    assert len(folders()) == 3


def test_a_report_imports_nothing_that_a_run_names(capsys):
    assert main([*QUICK, "max_steps=2", "optimizer=sgd"]) == 0
    (folder,) = folders()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    Path("evil.py").write_text("open('imported', 'w').close()\n")
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "plugins": ["evil"]}))
    assert report(["runs"]) == 0
    assert "1 runs" in capsys.readouterr().out
    assert not Path("imported").exists()
    assert main([*QUICK, "max_steps=2", "optimizer=sgd", "force=true"]) == 0  # nor does training there again
    assert not Path("imported").exists()


def test_a_run_folder_gives_no_configs():
    assert main([*QUICK, "max_steps=2", "optimizer=sgd"]) == 0
    (folder,) = folders()
    Path("evil.py").write_text("open('imported', 'w').close()\n")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "plugins": ["evil"]}))
    assert main(["--config-dir", str(folder), *QUICK, "max_steps=2", "optimizer=sgd"]) == 2
    assert not Path("imported").exists()


MISTAKES = {
    "plugins=[nowhere]": "plugins=[nowhere]: there is no module nowhere: install its package, or run the command in",
    "plugins=[mine.nowhere]": "plugins=[mine.nowhere]: there is no module mine.nowhere",
    "plugins=mine": "plugins=mine is not possible: give a list of strings such as [my_module]",
    "plugins=[./mine.py]": "plugins=[./mine.py] is not possible: give the names of modules, such as [my_module]",
    "plugins=[broken]": "plugins=[broken] cannot be imported (SyntaxError: invalid syntax",
    "plugins=[needy]": "plugins=[needy] cannot be imported (ModuleNotFoundError: No module named 'nowhere')",
    "plugins=[taken]": "plugins=[taken] cannot be imported (ValueError: optimizer 'sgd' is already registered",
    "--config-dir=nowhere": "--config-dir=nowhere is not a folder: give the folder that contains your groups.",
    "--config-dir=hidden": "hidden/optimizer/sgd.yaml would be hidden by sibp's own optimizer/sgd.yaml: give",
    "--config-name=nowhere": "--config-name=nowhere is not possible: move its content to DIR/experiment/nowhere.yaml",
    "--config-path=x": "--config-path would replace sibp's configs: add yours with --config-dir.",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_an_error_is_one_sentence_and_nothing_is_trained(word, capsys):
    Path("broken.py").write_text("import (\n")
    Path("needy.py").write_text("import nowhere\n")
    Path("taken.py").write_text("from sibp.plugins import register_optimizer\nregister_optimizer('sgd', print)\n")
    Path("hidden/optimizer").mkdir(parents=True)
    Path("hidden/optimizer/sgd.yaml").touch()
    for _ in range(2):  # the second attempt fails, too
        assert main([*QUICK, "max_steps=2", word]) == 2
        error = capsys.readouterr().err
        assert MISTAKES[word] in error
        assert len(error.splitlines()) == 1
    assert not Path("runs").exists()


def installed(site: Path, plugin: str = PLUGIN) -> dict[str, str]:
    """The environment of a process in which a package of theirs is installed, with an entry point."""
    about = site / "their_package-1.5.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.5\n")
    (about / "entry_points.txt").write_text("[sibp.plugins]\ntheirs = their_package.methods\n")
    (site / "their_package").mkdir()
    (site / "their_package" / "__init__.py").touch()
    (site / "their_package" / "methods.py").write_text(plugin)
    project = str(Path(data.__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([project, str(site)])}


def test_an_installed_package_registers_plugins_by_an_entry_point(tmp_path):
    """All of them, without any warning, in this process and in a launcher's."""
    environment = installed(tmp_path / "site", PLUGIN + ACTIVATION)
    Path("mine.py").unlink()
    theirs = ["--config-dir", "my configs", "dataset=halves", "batch_size=20", "epochs=2", *QUICK]
    theirs += ["model.activation=wave", "model.hidden=[5]", "optimizer=half,sibp"]
    launched = ["-m", "hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-P", "-m", "sibp", "train", *launched, *theirs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].startswith("2 runs: 2 completed"), done.stderr
    assert {line.partition(",")[0] for line in done.stderr.splitlines()} <= {"1/2 runs"}
    folder, _ = folders()
    assert folder.name.startswith("halves-mlp5-half-lr0.1-s0-")
    versions = json.loads((folder / "summary.json").read_text())["environment"]["versions"]
    assert versions["their-package"] == "1.5"


def test_a_package_that_cannot_be_imported_is_named_only_where_needed(tmp_path, monkeypatch, capsys):
    installed(tmp_path / "site", "import nowhere")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert main([*QUICK, "max_steps=2", "optimizer=sgd"]) == 0
    assert capsys.readouterr().err == ""
    Path("my configs/optimizer/other.yaml").write_text("name: other\nlr: 0.1\n")
    assert main(["--config-dir", "my configs", *QUICK, "max_steps=2", "optimizer=other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "The plugin theirs of the package their-package cannot be imported (ModuleNotFoundError: No module named "
        "'nowhere'): fix it, or uninstall the package."
    )
    assert not folders()[1:]


def test_a_report_imports_no_installed_package(tmp_path, monkeypatch):
    installed(tmp_path / "site", "open('imported', 'w').close()")
    assert main([*QUICK, "max_steps=2", "optimizer=sgd"]) == 0
    (folder,) = folders()
    config = (folder / "config.yaml").read_text().replace("name: sgd", "name: theirs")
    (folder / "config.yaml").write_text(config)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert report(["runs"]) == 0
    assert not Path("imported").exists()
