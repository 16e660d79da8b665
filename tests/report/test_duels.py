"""Who won, in words; which seeds are missing, and the command that adds them."""

import shlex
from pathlib import Path

import pytest
from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.analysis.comparison import Problem, compare
from sibp.analysis.duels import answer, duels, judged_quantities, missing_seeds
from sibp.experiment.compose import CONFIGS, compose, plan
from sibp.report.terminal import in_short, table
from sibp.report.verdicts import outcome
from sibp.runs.collect import collect
from sibp.runs.identity import digest
from sibp.runs.repeat import command, overrides_of


def problem_of(root: Path) -> Problem:
    (problem,) = compare(collect([root]).runs, None, None)
    return problem


def write(root: Path, optimizer: dict, ends: dict[int, float], **changes) -> None:
    for seed, end in ends.items():
        write_run(root / f"{optimizer['name']}-{seed}", optimizer, seed, (2.0, 1.0, end), **changes)


def test_a_reversed_duel_negates_the_difference_and_the_verdict(tmp_path):
    write(tmp_path, SGD, {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.1})
    write(tmp_path, SIBP, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.3})
    for duel in duels(problem_of(tmp_path)):
        back = duel.turned()
        assert (back.method, back.other) == (duel.other, duel.method)
        assert (back.verdict.wins, back.verdict.losses) == (duel.verdict.losses, duel.verdict.wins)
        assert back.turned() == duel
    loss = duels(problem_of(tmp_path))[0]
    assert loss.method.name == "sibp cg:5"
    assert loss.verdict.word == loss.turned().verdict.word == "no difference"  # won at four seeds of five
    assert loss.verdict.difference is not None
    turned = loss.turned().verdict.difference
    assert turned is not None
    assert (turned.median, turned.low, turned.high) == pytest.approx((0.4, -0.2, 0.4))
    write(tmp_path / "sure", SGD, dict.fromkeys(range(5), 0.5))
    write(tmp_path / "sure", SIBP, dict.fromkeys(range(5), 0.2))
    sure = duels(problem_of(tmp_path / "sure"))[0]
    assert (sure.verdict.word, sure.turned().verdict.word) == ("better", "worse")


def test_a_winner_is_better_than_every_other(tmp_path):
    write(tmp_path, SGD, dict.fromkeys(range(5), 0.5))
    write(tmp_path, PROXBP, {seed: 0.3 + 0.01 * seed for seed in range(5)})
    write(tmp_path, SIBP, {seed: 0.2 + 0.01 * seed for seed in range(5)}, seconds_per_step=0.02)
    problem = problem_of(tmp_path)
    found = answer(problem, judged_quantities(problem)[0])
    assert found is not None
    assert found.leader is not None
    assert found.clear
    assert [(method.name, round(of.median, 6)) for method, of in found.medians] == [
        ("sibp cg:5", 0.22),
        ("proxbp exact", 0.32),
        ("sgd", 0.5),
    ]
    first, _, meaning = outcome(problem)
    assert first.startswith("Final train loss: sibp cg:5 won (0.22 [0.2, 0.24]), better than proxbp exact and sgd;")
    assert "proxbp exact, is behind by 0.1 [0.1, 0.1] at the median, on 5 of 5 seeds" in first
    # SIBP, like SGD, gets below SGD's final 0.5 after 20 steps: a step may cost as much as SGD's, and costs twice that.
    assert meaning == (
        "A step of sibp cg:5 costs 2 [2, 2] times one of sgd; sibp cg:5 is ahead only below 1 [1, 1] times. "
        "By the clock (seconds of these runs), sibp cg:5 is worse than sgd and proxbp exact."
    )


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (1.5, "1.5 [1.5, 1.5] times one of sgd, and sibp cg:5 would still be ahead at up to 2 [2, 2] times."),
        (2.0, "2 [2, 2] times one of sgd; sibp cg:5 is ahead only below 2 [2, 2] times."),
        (2.5, "2.5 [2.5, 2.5] times one of sgd; sibp cg:5 is ahead only below 2 [2, 2] times."),
    ],
    ids=["better", "within the noise", "worse"],
)
def test_the_price_of_a_step_is_said_as_the_verdict_by_time_has_it(tmp_path, cost, said):
    """SIBP needs half of SGD's steps to SGD's loss, so that its steps may cost twice as much."""
    for seed in range(5):
        write_run(tmp_path / f"sgd-{seed}", SGD, seed, (2.0, 1.0, 0.5))
        write_run(tmp_path / f"sibp-{seed}", SIBP, seed, (2.0, 0.5, 0.25), seconds_per_step=0.01 * cost)
        write_run(tmp_path / f"proxbp-{seed}", PROXBP, seed, (2.0, 1.0, 0.5), seconds_per_step=0.05)
    meaning = outcome(problem_of(tmp_path))[-1]
    assert f"A step of sibp cg:5 costs {said}" in meaning
    by_time = {
        1.5: "better than sgd and proxbp exact",
        2.0: "better than proxbp exact, and within the noise of sgd",
        2.5: "better than proxbp exact, and worse than sgd",
    }
    assert meaning.endswith(f"By the clock (seconds of these runs), sibp cg:5 is {by_time[cost]}.")


def test_there_is_no_verdict_by_time_without_seconds(tmp_path):
    write(tmp_path, SGD, dict.fromkeys(range(5), 0.5), seconds_per_step=0.0)
    write(tmp_path, SIBP, dict.fromkeys(range(5), 0.2), seconds_per_step=0.0)
    said = outcome(problem_of(tmp_path))[-1]
    assert said == "There is no verdict by the clock: too few shared seeds, or no recorded seconds."


def test_a_shared_best_median_names_whom_all_of_them_beat(tmp_path):
    write(tmp_path, SIBP, dict.fromkeys(range(5), 0.2))
    write(tmp_path, PROXBP, {0: 0.2, 1: 0.2, 2: 0.2, 3: 0.2, 4: 0.45})
    write(tmp_path, SGD, dict.fromkeys(range(5), 0.5))
    write(tmp_path, SGD | {"name": "adam"}, dict.fromkeys(range(5), 0.4))  # ProxBP is behind it at one seed
    said = outcome(problem_of(tmp_path))[0]
    assert said == "Final train loss: proxbp exact and sibp cg:5 share the best median (0.2); both are better than sgd."
    write(tmp_path, SGD | {"name": "adamw"}, dict.fromkeys(range(5), 0.2))
    said = outcome(problem_of(tmp_path))[0]
    assert said.endswith("adamw, proxbp exact and sibp cg:5 share the best median (0.2); all are better than sgd.")


def test_a_winner_over_many_methods_names_only_the_nearest(tmp_path):
    rivals = {name: {**SIBP, "solver": name} for name in ("cg:1", "cg:2", "cg:3", "exact")}
    for i, (name, optimizer) in enumerate(rivals.items()):
        for seed in range(5):
            write_run(tmp_path / f"{name}-{seed}", optimizer, seed, (2.0, 1.0, 0.3 + 0.1 * i + 0.01 * seed))
    write(tmp_path, SGD, {seed: 0.2 + 0.01 * seed for seed in range(5)})
    said = outcome(problem_of(tmp_path))[0]
    assert said.startswith(
        "Final train loss: sgd won (0.22 [0.2, 0.24]), better than all others; the nearest, sibp cg:1, "
    )


def test_a_weak_verdict_prints_the_command_that_adds_seeds(tmp_path):
    write(tmp_path, SGD, {0: 0.5, 1: 0.5})
    write(tmp_path, SIBP, {1: 0.2, 2: 0.2, 7: 0.2})
    problem = problem_of(tmp_path)
    missing = {method.name: seeds for method, seeds in missing_seeds(problem, duels(problem)).items()}
    assert missing == {"sgd": [2, 3, 7], "sibp cg:5": [0, 3]}  # then both have 0, 1, 2, 3 and 7
    said = outcome(problem)
    assert "too few shared seeds" in said[0]
    line = said[-1]
    assert line.startswith("Too few seeds of sibp cg:5 for a verdict: run sibp train -m ")
    words = shlex.split(line.partition("run sibp train ")[2])
    seeds = [config["seed"] for config in plan(words[1:], sweep=True)]
    assert seeds == [0, 3]


def test_a_seed_whose_run_has_not_ended_is_missing(tmp_path):
    write(tmp_path, SGD, dict.fromkeys(range(5), 0.5))
    write(tmp_path, SIBP, dict.fromkeys(range(4), 0.2))
    write(tmp_path, SIBP, {4: 0.2}, status=None)
    problem = problem_of(tmp_path)
    missing = {method.name: seeds for method, seeds in missing_seeds(problem, duels(problem)).items()}
    assert missing == {"sibp cg:5": [4]}


def test_enough_seeds_need_no_more(tmp_path):
    write(tmp_path, SGD, dict.fromkeys(range(5), 0.5))
    write(tmp_path, SIBP, dict.fromkeys(range(5), 0.5))
    problem = problem_of(tmp_path)
    assert missing_seeds(problem, duels(problem)) == {}
    assert outcome(problem)[0] == "Final train loss: sgd and sibp cg:5 share the best median (0.5)."


OPTIONS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))
CASES = [
    ["experiment=digits_quick", "optimizer=sgd", "optimizer.lr=0.2", "optimizer.momentum=0.9", "threads=1"],
    ["experiment=mnist_mlp", "optimizer=proxbp", "model.hidden=[200,100]", "data_root=/some/where", "label_noise=0.2"],
    ["experiment=proxprop_convnet", "optimizer=adam", "evaluate_test=false", "schedule=cosine"],
    *([f"optimizer={option}", "optimizer.lr=0.7"] for option in OPTIONS if option != "sibp_auto"),
]


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_config_is_written_as_the_overrides_that_make_it(words):
    config = compose(words)
    found = overrides_of(config)
    assert found is not None
    assert compose(found) == config
    assert len(found) <= 14  # only settings that differ from the defaults
    assert command(config, [3]) == shlex.join(["sibp", "train", *found, "seed=3"])


@pytest.mark.parametrize("kept", ["mnist_mlp", "depth", "schedules"])
def test_kept_runs_can_be_written_as_a_command(kept):
    runs = collect([Path(__file__).parents[2] / "results" / kept]).runs
    for run in runs[::97]:
        words = overrides_of(run.config)
        assert words is not None
        assert digest(compose([*words, f"seed={run.seed}"])) == digest(run.config)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {"name": "mine", "lr": 1.0}},
        {"optimizer": {"name": "sgd", "lr": "$(rm -rf x)", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}},
        {"dataset": "digits"},
        {"no_such_key": 1},
    ],
)
def test_settings_unknown_to_sibp_train_have_no_command(change):
    assert command({**compose(["optimizer=sgd"]), **change}, [0, 1]) is None


def test_the_terminal_shows_medians_and_few_problems(tmp_path):
    write(tmp_path / "a", SGD, dict.fromkeys(range(5), 0.5))
    write(tmp_path / "a", SIBP, dict.fromkeys(range(5), 0.25))
    text = table(problem_of(tmp_path / "a")).splitlines()
    assert text[0].split()[:3] == ["method", "setting", "seeds"]
    assert text[2].split() == ["sgd", "lr=0.1", "5", "0.5", "[0.5,", "0.5]", "0.6065", "[0.6065,", "0.6065]", "10.00"]
    for batch in range(1, 6):
        write(tmp_path / f"batch{batch}", SGD, {0: 0.5}, batch_size=batch)
    said = in_short(compare(collect([tmp_path]).runs, None, None))
    assert "and 3 more in the report" in said
    assert "Fewer than two methods have results: there is nothing to compare." in said
