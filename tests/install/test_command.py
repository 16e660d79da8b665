"""The command ``sibp``: its dispatch and its help, without importing torch."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sibp
from sibp.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def test_without_arguments_it_lists_the_commands(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"sibp {command}" in shown for command in COMMANDS)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sibp {sibp.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sibp.__version__ == project["version"]


def test_the_version_of_a_command_is_not_hydras(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--version"])
    assert capsys.readouterr().out == f"sibp {sibp.__version__}\n"


def test_the_installed_command_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["sibp"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_own_help(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    assert f"sibp {command}" in capsys.readouterr().out


def test_it_trains_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "optimizer=sgd", "max_steps=2", "model.hidden=[4]", "threads=1", "tensorboard=false"]) == 0
    assert main(["report", "runs"]) == 0
    assert Path("report.html").is_file()
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "sibp has no command trian; did you mean sibp train?"),
        (["optimizer=sgd"], "sibp has no command optimizer=sgd; did you mean sibp train optimizer=sgd?"),
        (["zzz"], "sibp has no command zzz. There are: train, tune, report, bench."),
        (["train", "seeed=1"], "There is no setting seeed; did you mean seed?"),
    ],
)
def test_an_error_is_one_sentence(words, sentence, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert len(error.splitlines()) == 1


def new_modules(code: str, folder: Path) -> set[str]:
    """The packages that code imports in a process of its own, beside the standard library's."""
    code = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in {{*sys.modules}} - before}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return {*done.stdout.splitlines()[-1].split()} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("words", [[], ["--version"], ["trian"]])
def test_help_and_errors_import_nothing(words, tmp_path):
    code = f"before = {{*sys.modules}}\nfrom sibp.__main__ import main\nmain({words})"
    assert new_modules(code, tmp_path) == {"sibp"}


def test_the_report_imports_no_torch(tmp_path):
    code = "before = {*sys.modules}\nfrom sibp.__main__ import main\nmain(['report', '.'])"
    assert {"sibp", "numpy"} <= new_modules(code, tmp_path)
    assert "torch" not in new_modules(code, tmp_path)


def test_the_optimizers_import_only_torch(tmp_path):
    """So they can be installed without the requirements of the experiments, as the FAQ says."""
    code = """
import torch, torch._dynamo, torch.nn.functional as F
before = {*sys.modules}
from sibp import SIBP, ProxBP
for method in (SIBP, ProxBP):
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6, 3))
    optimizer = method(model, lr=0.1, prox_weight=1.0)
    F.cross_entropy(model(torch.rand(4, 1, 5)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
"""
    assert new_modules(code, tmp_path) == {"sibp"}
