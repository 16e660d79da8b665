"""The comparison that ends the quick start."""

import runpy
import sys
from pathlib import Path

import pytest

from sibp.experiment.compare import plot, same_start, table
from sibp.experiment.runner import run
from sibp.runs.reading import Run, read_run

QUICKSTART = Path(__file__).parents[2] / "scripts" / "quickstart.py"


def result(config) -> Run:
    return read_run(run(config).folder.path)


def test_the_table_says_what_each_run_reached(make_config):
    good, bad = make_config("sibp", max_steps=40), make_config(target_val_acc=1.0)
    broken = make_config(max_steps=50)
    broken["optimizer"]["lr"] = 1e30
    runs = [result(config) for config in (good, bad, broken)]
    header, _, first, second, third = table(runs).splitlines()
    assert header.split()[:3] == ["method", "train", "loss"]
    assert first.startswith("sibp cg:3 lr=0.3 prox_weight=1 ")
    assert f"{runs[0].summary['test_acc']:.4f}" in first
    assert first.endswith(f"{runs[0].summary['steps_to_target']} (0.5)")
    assert second.endswith("never (1)")
    assert third.endswith("diverged")
    assert "momentum=0.9" in second
    assert len({len(line) for line in table(runs).splitlines()}) == 1


def test_different_starts_are_noticed(make_config):
    runs = [result(make_config(name)) for name in ("sgd", "adam")]
    assert same_start(runs)
    assert not same_start([*runs, result(make_config(seed=1))])


def test_the_picture_is_written(make_config, tmp_path):
    broken = make_config(max_steps=50)
    broken["optimizer"]["lr"] = 1e30
    plot([result(make_config()), result(broken)], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_quick_start_works_and_works_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(QUICKSTART), "--run-root", "runs/q", "epochs=2"])
    for _ in range(2):
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(QUICKSTART), run_name="__main__")
        assert ending.value.code == 0
        text = capsys.readouterr().out
        for part in ("sgd lr=", "proxbp exact lr=", "sibp cg:5 lr=", "batches: yes", "tensorboard --logdir runs/q"):
            assert part in text
    assert (tmp_path / "runs/q/comparison.png").exists()
    assert len(list((tmp_path / "runs/q").glob("*/tb"))) == 3
