"""`sibp bench runs`: steps of run folders, timed with their own settings, are a clock for their report."""

import json

import pytest
import torch
from fake_runs import SGD, SIBP, write_run

from sibp.analysis.clock import read_clock
from sibp.analysis.comparison import compare
from sibp.bench import timing
from sibp.bench.__main__ import main
from sibp.bench.runs import Training
from sibp.bench.timing import MIN_ROUNDS
from sibp.experiment.data import load_data
from sibp.optim import AutoSIBP
from sibp.runs.collect import collect

AUTO = {"name": "sibp_auto", "lr": 10.0, "prox_weight": 1.0, "fallback_lr": 0.001}
FOOF = {"name": "foof", "lr": 1.0, "damping": 1.0, "decay": 0.95, "inverse_every": 7, "covariance_steps": 7}


@pytest.fixture
def digits():
    return load_data({"name": "digits"}, "data", False).prepared(True, torch.device("cpu"))


def training(root, data, optimizer, **changes):
    write_run(root / str(optimizer["name"]), optimizer, seed=3, **changes)
    (run,) = collect([root]).runs
    return Training(run, data)


def test_the_record_times_every_method_of_the_runs_by_their_report_s_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "_STRETCH", 0.0)
    for name, optimizer in (("sgd", SGD), ("sibp", SIBP), ("auto", AUTO)):
        write_run(tmp_path / "runs" / name, optimizer)
    words = ["runs", str(tmp_path / "runs"), "--seconds", "0", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    (record,) = (tmp_path / "out").glob("runs-*.json")
    (problem,) = compare(collect([tmp_path / "runs"]).runs, None, None)
    clock = read_clock(record, problem)
    assert clock is not None
    assert set(clock) == {method.name for method in problem.methods} == {"sgd", "sibp cg:5", "sibp_auto"}
    (case,) = json.loads(record.read_text())["cases"]
    for samples in (*clock.values(), *case["seconds_per_step"].values()):
        assert len(samples) == MIN_ROUNDS
        assert min(samples) > 0
    assert "64-64-10, batch 50" in capsys.readouterr().out


def test_a_run_is_trained_as_it_was_and_from_the_start_after_its_steps(tmp_path, digits):
    timed = training(tmp_path, digits, AUTO)  # of 20 steps
    assert isinstance(timed.optimizer, AutoSIBP)
    start = [p.detach().clone() for p in timed.model.parameters()]
    for _ in range(20):
        timed.restart()
        timed.step()
    ended = [p.detach().clone() for p in timed.model.parameters()]
    assert any((a != b).any() for a, b in zip(start, ended, strict=True))
    timed.restart()
    assert all((a == b).all() for a, b in zip(start, timed.model.parameters(), strict=True))
    assert timed.optimizer.search_stats() == {}


APROX = {"name": "aprox", "lr": 1.0, "least": 0.0}
SLS = {"name": "sls", "lr": 10.0, "length": 1.0, "growth": 1.0, "shrink": 0.5, "decrease": 0.1}


@pytest.mark.parametrize("optimizer", [APROX, SLS, FOOF])
def test_methods_that_need_the_loss_of_the_batch_get_it(tmp_path, digits, optimizer):
    timed = training(tmp_path, digits, optimizer)
    start = [p.detach().clone() for p in timed.model.parameters()]
    timed.step()
    assert all((a != b).any() for a, b in zip(start, timed.model.parameters(), strict=True))


def test_dear_steps_count_in_proportion(tmp_path, digits):
    assert training(tmp_path, digits, FOOF).period == 7


@pytest.mark.parametrize("status", [None, "diverged"])
def test_runs_that_have_not_ended_are_refused_in_one_sentence(tmp_path, capsys, status):
    write_run(tmp_path / "runs" / "sgd", SGD, status=status)
    assert main(["runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    assert "no run has finished" in capsys.readouterr().err
