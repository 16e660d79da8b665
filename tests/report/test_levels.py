"""Targets at three levels, first looks, the price of tuning, and failures, on made-up runs."""

import pytest
from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.analysis.arena import Contest, contests, failures, levels, scores, targets, tuning_seconds
from sibp.analysis.comparison import compare
from sibp.runs.collect import collect

CURVES = {"sgd": (2.0, 1.5, 1.0), "proxbp exact": (2.0, 0.9, 0.5), "sibp cg:5": (2.0, 0.9, 0.2)}
OPTIMIZERS = {"sgd": SGD, "proxbp exact": PROXBP, "sibp cg:5": SIBP}


@pytest.fixture
def contest(tmp_path) -> Contest:
    """Three methods, five seeds; SIBP takes twice as long, was tuned in three trials of 20 steps, and diverges once."""
    for name, curve in CURVES.items():
        pace = 0.02 if name == "sibp cg:5" else 0.01
        for seed in range(5):
            dead = name == "sibp cg:5" and seed == 4
            losses, status = ((2.0, None), "diverged") if dead else (curve, "completed")
            write_run(tmp_path / f"{name}{seed}", OPTIMIZERS[name], seed, losses, status, pace, role="final")
        for seed in (100, 101, 102) if name == "sibp cg:5" else ():
            write_run(tmp_path / f"{name}{seed}", OPTIMIZERS[name], seed, curve, "completed", 1.0, role="trial")
    (found,) = contests(compare(collect([tmp_path]).runs, None, None), {})
    return found


def test_targets_are_sgds_end_the_median_and_the_best_decile(contest):
    assert [target.value for target in targets(contest, "training")] == [1.0, 0.5, 0.2]
    assert [target.column for target in targets(contest, "validation")] == ["val_acc"] * 3


def test_a_target_met_at_the_first_evaluation_is_marked(contest):
    """Two have SGD's end, 1.0, at their first row, with 0.9; the median, 0.5, is met at the second row alone."""
    easy, middle, hard = levels(contest, "training")
    assert (easy.at_first_row, middle.at_first_row, hard.at_first_row) == (True, False, False)
    assert [each.reached for each in (easy, middle, hard)] == [3, 2, 1]
    assert easy.entered == 3


def test_half_of_the_seeds_suffice_for_a_first_row(tmp_path):
    """SIBP reaches SGD's 1.0 first, at a median of 15 steps: on two seeds after 10, its first row, on two after 20."""
    for seed, middle in enumerate((0.9, 0.9, 1.5, 1.5)):
        write_run(tmp_path / f"sgd{seed}", SGD, seed, CURVES["sgd"])
        write_run(tmp_path / f"sibp{seed}", SIBP, seed, (2.0, middle, 0.2))
    (contest,) = contests(compare(collect([tmp_path]).runs, None, None), {})
    easy = levels(contest, "training")[0]
    assert easy.target.value == 1.0
    assert easy.at_first_row


def test_tuning_time_is_charged_to_the_method(contest):
    """Priced at the final runs' time per step: three trials of 20 steps at 0.02 seconds, whatever the trials took."""
    by_name = {method.name: method for method in contest.problem.methods}
    assert tuning_seconds(by_name["sibp cg:5"]) == pytest.approx(3 * 20 * 0.02)
    assert tuning_seconds(by_name["sgd"]) == 0
    found = scores([contest], "training")["sibp cg:5"]
    assert found["SGD's end", "steps"] == pytest.approx(4 / 5)  # as fast as ProxBP except on the diverged seed
    assert found["SGD's end", "seconds"] == pytest.approx(4 / 5 * (4 - 2) / 3)
    assert found["SGD's end", "seconds with tuning"] == 0
    assert found["the best decile", "seconds with tuning"] == pytest.approx(4 / 5)  # no other method reaches it


def test_methods_that_fail_are_named(contest):
    assert failures([contest]) == [("sibp cg:5", contest.problem.title, 1, 5)]
