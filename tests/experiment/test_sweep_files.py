"""Sweep files that refer to others, and their final runs; test_tune.py has the invalid ones."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from sibp.experiment import compose
from sibp.tuning.sweep import Sweep, read_sweep


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of configs/, to add sweeps to."""
    shutil.copytree(compose.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(compose, "CONFIGS", tmp_path / "configs")


def read(content: dict[str, Any], *words: str) -> Sweep:
    (compose.CONFIGS / "sweep" / "tiny.yaml").write_text(yaml.safe_dump(content))
    return read_sweep("tiny", words)


def test_a_file_like_another_changes_only_what_it_names():
    """Adds a method, drops one, changes a grid and the number of trials; inherits the rest."""
    adam = {"overrides": ["optimizer=adam"], "grid": {"lr": [0.001, 0.002, 0.003, 0.01]}}
    sgd = {"grid": {"lr": [0.1, 0.2], "momentum": [0.1, 0.9]}}
    changed = read({"like": "digits_quick", "trials": 5, "methods": {"proxbp": None, "sgd": sgd, "adam": adam}})
    base = read_sweep("digits_quick", [])
    assert [method.name for method in changed.methods] == ["sgd", "sibp cg:3", "adam"]
    assert [axis.values for axis in changed.methods[0].axes] == [(0.1, 0.2), (0.1, 0.9)]
    assert changed.methods[0].config["optimizer"] == base.methods[0].config["optimizer"]
    assert changed.methods[1].axes == base.methods[2].axes
    assert changed.trials == 5
    assert changed.final_seeds == base.final_seeds
    assert changed.root == Path("runs/tuning/tiny")


def test_the_old_name_of_overrides_works_with_a_warning():
    """Names of 0.1.0, which remain valid until 0.3.0."""
    own = ["optimizer=sgd", "optimizer.weight_decay=1"]
    new = read({"like": "digits_quick", "methods": {"sgd": {"overrides": own}}})
    with pytest.warns(FutureWarning, match=r"methods\.sgd\.words is called overrides since 0\.2\.0"):
        old = read({"like": "digits_quick", "methods": {"sgd": {"words": own}}})
    assert old == new
    assert old.methods[0].config["optimizer"]["weight_decay"] == 1


def test_final_runs_are_evaluated_more_often_and_are_otherwise_the_same():
    sweep = read({"like": "digits_quick", "final_looks": 5}, "log_every=20")
    trial, final = (sweep.job(sweep.methods[0], (0.0, 0.0), 0, final) for final in (False, True))
    assert (trial["log_every"], final["log_every"]) == (20, 4)
    assert {key for key in trial if trial[key] != final[key]} == {"log_every", "evaluate_test", "role", "run_root"}


def test_final_runs_may_begin_with_rows_of_their_own():
    sweep = read({"like": "digits_quick", "final_early": 2}, "log_every=20", "log_early=null")
    trial, final = (sweep.job(sweep.methods[0], (0.0, 0.0), 0, final) for final in (False, True))
    assert (trial["log_early"], final["log_early"]) == (None, 2)
    sweep = read({"like": "digits_quick"}, "log_early=7")
    assert [sweep.job(sweep.methods[0], (0.0, 0.0), 0, final)["log_early"] for final in (False, True)] == [7, 7]


@pytest.mark.slow
def test_one_entry_adds_a_method_to_all_problems_of_the_arena():
    path = compose.CONFIGS / "sweep" / "arena.yaml"
    arena = yaml.safe_load(path.read_text())
    arena["methods"]["new"] = {"overrides": ["optimizer=sibp", "optimizer.solver=cg:7"], "grid": _nine()}
    path.write_text(yaml.safe_dump(arena))
    for name in ("arena", "arena_convnet", "arena_autoencoder"):
        assert "new" in [method.name for method in read_sweep(name, []).methods]


def _nine() -> dict[str, list[float]]:
    return {"lr": [0.1, 0.2, 0.3], "prox_weight": [1.0, 2.0, 3.0]}
