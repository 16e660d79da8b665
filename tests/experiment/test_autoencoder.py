"""A model that reconstructs its images: its layers, its loss, and runs, tuning and reports without an accuracy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sibp.experiment import runner
from sibp.experiment.compose import compose
from sibp.experiment.data import Split, load_data
from sibp.experiment.models import build_model
from sibp.experiment.objectives import RECONSTRUCTION
from sibp.experiment.runner import run
from sibp.report.__main__ import main as report
from sibp.runs.packed import rows_of
from sibp.runs.reading import read_run
from sibp.tune import main as tune

MODEL = {"name": "autoencoder", "hidden": [12, 4], "activation": "tanh", "init": "default", "init_std": None}


def test_the_autoencoder_is_that_of_the_literature():
    """784-1000-500-250-30 and back, tanh, a linear code, sigmoid cross-entropy; batches of 1,000; 2.8 M parameters."""
    config = compose(["experiment=mnist_autoencoder"])
    model = build_model(config["model"], (1, 28, 28), 10, 0)
    kinds = [layer.out_features if isinstance(layer, nn.Linear) else type(layer).__name__ for layer in model]  # pyright: ignore
    assert kinds == [
        1000, "Tanh", 500, "Tanh", 250, "Tanh", 30, 250, "Tanh", 500, "Tanh", 1000, "Tanh", 784,
    ]  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == 2_837_314
    assert (config["dataset"], config["batch_size"]) == ({"name": "mnist"}, 1000)


def test_the_loss_is_the_cross_entropy_of_every_pixel():
    random = np.random.default_rng(0)
    logits, pixels = random.normal(size=(3, 4)), random.uniform(size=(3, 1, 2, 2))
    p, x = 1 / (1 + np.exp(-logits)), pixels.reshape(3, 4)
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum()
    values = torch.tensor(logits), torch.tensor(pixels), torch.zeros(3)
    np.testing.assert_allclose(RECONSTRUCTION.loss(*values, "sum").item(), expected)
    np.testing.assert_allclose(RECONSTRUCTION.loss(*values, "mean").item(), expected / 3)


@pytest.fixture
def runs(make_config, tmp_path: Path) -> Path:
    for optimizer in ("sgd", "sibp"):
        config = make_config(optimizer, model=MODEL, target_val_acc=None, tensorboard=True)
        config["optimizer"]["lr"] = 0.02
        assert run(config).status == "completed"
    return tmp_path / "runs"


def test_runs_are_judged_by_their_losses(runs: Path, tmp_path: Path, capsys):
    results = [read_run(folder) for folder in sorted(runs.iterdir())]
    for result in results:
        rows, summary = rows_of(result), result.summary
        assert all(np.isnan(row["val_acc"]) and np.isnan(row["train_acc"]) for row in rows)
        assert 64 * np.log(2) == pytest.approx(rows[0]["val_loss"], rel=0.05)
        assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 1
        best = min(rows, key=lambda row: row["val_loss"])
        assert (summary["best_val_acc"], summary["best_val_step"]) == (None, best["step"])
        assert summary["test_acc"] is None
        assert summary["test_loss"] == pytest.approx(rows[-1]["val_loss"], rel=0.1)
    assert report([str(runs), "--out", str(tmp_path / "report.html"), "--format", "md,html,csv,png"]) == 0
    text = (tmp_path / "report.md").read_text()
    for words in ("final val loss", "test loss", "Final val loss: "):
        assert words in text
    verdicts = text[: text.index("### Loss and accuracy")]
    assert "val acc" not in verdicts
    header, *lines = (tmp_path / "report-summary.csv").read_text().splitlines()
    column = header.split(",").index("final val loss")
    losses = {line.split(",")[1]: line.split(",")[column] for line in lines}
    assert {name.split()[0] for name in losses} == {"sgd", "sibp"}
    assert all(float(loss) > 0 for loss in losses.values())


def test_tuning_is_by_the_loss(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "configs" / "sweep"
    folder.mkdir(parents=True)
    for path in compose_folder().iterdir():
        if path.name != "sweep":
            (tmp_path / "configs" / path.name).symlink_to(path)
    monkeypatch.setattr("sibp.experiment.compose.CONFIGS", tmp_path / "configs")
    words = ["sweep=tiny", f"run_root={tmp_path / 'tuned'}", "threads=1", "device=cpu"]
    sweep = """
shared: [dataset=digits, model=autoencoder, "model.hidden=[8, 3]", max_steps=4, batch_size=50, tensorboard=false]
trials: 2
tuning_seeds: [100]
final_seeds: [0]
methods:
  sgd:
    overrides: [optimizer=sgd]
    grid: {lr: [0.00001, 0.01]}
"""
    (folder / "tiny.yaml").write_text(sweep)
    assert tune(words) == 2
    assert "criterion=val_acc is not possible, as model=autoencoder has no accuracy" in capsys.readouterr().err
    (folder / "tiny.yaml").write_text(sweep + "criterion: val_loss\n")
    assert tune(words) == 0
    record = json.loads((tmp_path / "tuned" / "tuning.json").read_text())["methods"][0]
    assert record["chosen"] == {"lr": 0.01}
    assert [set(run) & {"val_acc", "val_loss"} for each in record["trials"] for run in each["runs"]] == [
        {"val_loss"}
    ] * 2
    assert "| lr=0.01" in (tmp_path / "tuned" / "tuning.md").read_text().replace("**", "")


def compose_folder() -> Path:
    from sibp.experiment.compose import CONFIGS

    return CONFIGS


BAD = {
    "activation": (
        {"model": MODEL | {"activation": "softmax"}},
        "model.activation=softmax is not known; choose one of",
    ),
    "no code": ({"model": MODEL | {"hidden": []}}, "model.hidden=[] is not possible: give the width of the code"),
    "width": ({"model": MODEL | {"hidden": [0]}}, "model.hidden=[0] is not possible"),
    "target": ({"model": MODEL, "target_val_acc": 0.9}, "target_val_acc=0.9: model=autoencoder has no accuracy"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_combinations_are_one_sentence(case: str, make_config):
    changes, sentence = BAD[case]
    outcome = run(make_config(**{"target_val_acc": None} | changes))
    assert outcome.wrong_input
    assert sentence in outcome.message


def test_pixels_outside_0_to_1_are_refused(make_config, monkeypatch):
    digits = load_data({"name": "digits"}, "", False)
    bright = replace(digits, train=Split(2 * digits.train.inputs, digits.train.labels))
    monkeypatch.setattr(runner, "load_data", lambda *_: bright)
    outcome = run(make_config(model=MODEL, target_val_acc=None))
    assert outcome.wrong_input
    assert "model=autoencoder is for pixels between 0 and 1, not for dataset=digits" in outcome.message
