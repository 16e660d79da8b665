"""AutoSIBP beside tuned methods: the tables say what the raw rows of results/ say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sibp.analysis.duels import compared
from sibp.analysis.outcomes import FINAL_LOSS
from sibp.study.untuned import best_tuned, total_costs, untuned

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def problems():
    return {each.folder: each for each in untuned(RESULTS)}


def rows(path: str) -> list[dict[str, Any]]:
    """The runs of a file, each completed with the shared fields that these tests read."""
    shared, *lines = map(json.loads, (RESULTS / path).read_text().splitlines())
    for line in lines:
        line["config"]["optimizer"] = shared["config"]["optimizer"] | line["config"].get("optimizer", {})
        line["rows"] = shared["rows"] | line["rows"]
        assert (line["summary"].get("status") or shared["summary"]["status"]) == "completed"
    return lines


def test_final_metrics_are_medians_of_last_rows(problems):
    problem = problems["shallow"]
    own = {run["config"]["seed"]: run["rows"]["train_loss"][-1] for run in rows("auto_untuned/shallow/runs.jsonl")}
    assert len(own) == 10
    assert problem.own.over_seeds(FINAL_LOSS).median == pytest.approx(np.median(list(own.values())))
    tuned = [run for run in rows("arena/shallow/final/runs.jsonl") if run["config"]["optimizer"]["name"] == "sgd"]
    more = rows("auto_untuned/shallow_sgd/runs.jsonl")
    sgd = {run["config"]["seed"]: run["rows"]["train_loss"][-1] for run in (*tuned, *more)}
    assert sorted(sgd) == sorted(own)
    assert problem.sgd.over_seeds(FINAL_LOSS).median == pytest.approx(np.median(list(sgd.values())))
    assert compared(problem.own, problem.sgd, FINAL_LOSS).wins == sum(own[seed] < sgd[seed] for seed in own)


def test_within_is_the_worse_end_of_the_best_ones_interval(problems):
    for problem in problems.values():
        for goal, sign in (("training", 1), ("validation", 1 if problem.folder == "autoencoder" else -1)):
            _, best, within = best_tuned(problem, goal)
            own = problem.own.over_seeds(problem.contest.quantities[goal])
            worse_end = max(sign * end for end in best.ends)
            assert within == (sign * own.median <= worse_end)


def test_seconds_are_steps_at_the_measured_pace(problems):
    """Tuned methods pay for tuning: all their trials' steps at their own time per step."""
    cases = json.loads((RESULTS / "arena/runs-cpu-1thread.json").read_text())["cases"]
    (clock,) = (c["processor_seconds_per_step"] for c in cases if (c["net"], c["batch"]) == ("784-500-10", 100))
    ratio = np.median(np.array(clock["sibp_auto"]) / np.array(clock["sgd"]))
    assert problems["shallow"].ratio == pytest.approx(ratio)
    target, mine, cheapest, theirs = total_costs(problems["shallow"], "training")[0]
    firsts = []
    for run in rows("auto_untuned/shallow/runs.jsonl"):
        reached = [s for s, x in zip(run["rows"]["step"], run["rows"]["train_loss"], strict=True) if x <= target.value]
        firsts += [min(reached, default=math.inf)] if run["config"]["seed"] < 5 else []
    assert mine == pytest.approx(np.median(firsts) * np.median(clock["sibp_auto"]))
    assert cheapest == "sgd"
    assert theirs > 12 * 200 * np.median(clock["sgd"])  # twelve trials of 200 steps before the run itself


def test_problems_without_trials_have_no_total_cost(problems):
    assert not total_costs(problems["digits"], "training")
