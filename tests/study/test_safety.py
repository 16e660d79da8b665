"""AutoSIBP over all step sizes, from runs whose losses are known."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "report"))

from fake_runs import write_run

from sibp.analysis.comparison import compare
from sibp.runs.collect import collect
from sibp.study.untuned import SAFE, safety

AUTO = {"name": "sibp_auto", "lr": 10.0, "prox_weight": 1.0}


@pytest.fixture
def problem(tmp_path):
    def make(place: str, ends: dict[tuple[float, int], float | None]):
        for (lr, seed), end in ends.items():
            status = "diverged" if end is None else "completed"
            write_run(tmp_path / place / f"{lr}-{seed}", AUTO | {"lr": lr}, seed, (2.0, 1.0, end), status)
        write_run(tmp_path / place / "other", {"name": "sgd", "lr": 1.0}, 0, (2.0, 1.0, 900.0))
        (found,) = compare(collect([tmp_path / place]).runs, None, None)
        return found

    return make


def test_losses_are_medians_over_seeds_and_the_worst_end_is_of_all_step_sizes(problem):
    ends = {(lr, seed): seed / 10 + 0.1 for lr in SAFE for seed in range(3)} | {(3.0, seed): 2.5 for seed in range(3)}
    assert safety(problem("all", ends)) == ["18", "2", *["0.2"] * len(SAFE), "1.25"]


def test_a_run_that_diverged_ends_at_infinity(problem):
    ends = {(lr, seed): 0.5 for lr in SAFE for seed in range(3)}
    found = safety(problem("one", ends | {(100.0, 1): None}))
    assert found == ["15", "2", *["0.5"] * len(SAFE), "inf"]
    assert safety(problem("two", ends | {(100.0, seed): None for seed in range(2)}))[-2:] == ["inf", "inf"]
