"""From runs to problems, methods and settings, and their representative metrics."""

import math
from pathlib import Path

import numpy as np
import pytest
from fake_runs import PROXBP, SGD, SIBP, config, write_run

from sibp.analysis import outcomes
from sibp.analysis.comparison import Problem, compare
from sibp.analysis.outcomes import Target, at_equal_seconds, to_target
from sibp.experiment.compose import compose
from sibp.report.blocks import Figure
from sibp.report.curves import MAX_POINTS, common_steps, robustness, thinned
from sibp.report.sections import choice_text
from sibp.report.tables import budget_table
from sibp.runs import identity
from sibp.runs.collect import collect
from sibp.runs.reading import read_run

INF = math.inf


def problems(root: Path, target_acc: float | None = None, target_loss: float | None = None) -> list[Problem]:
    return compare(collect([root]).runs, target_acc, target_loss)


def only(root: Path) -> Problem:
    (problem,) = problems(root)
    return problem


def test_seed_paths_and_logging_interval_make_no_new_setting(tmp_path):
    write_run(tmp_path / "a", SGD, 0, evaluate_test=False, histograms=True)
    write_run(tmp_path / "b", SGD, 1, device="cuda", run_root="elsewhere", log_every=5, target_val_acc=0.5, threads=2)
    write_run(tmp_path / "c", {**SGD, "momentum": 0}, 2)  # 0 is 0.0
    (method,) = only(tmp_path).methods
    (setting,) = method.settings
    assert [run.seed for run in setting.runs] == [0, 1, 2]


def test_a_run_from_before_a_setting_existed_is_one_with_its_default(tmp_path):
    defaults = compose([])
    assert {key: defaults[key] for key in identity.LATER} == identity.LATER
    assert defaults["model"]["activation"] == identity.LATER_OF_MODEL["mlp"]["activation"]
    write_run(tmp_path / "old", SGD, 0)
    write_run(tmp_path / "new", SIBP, 0, **identity.LATER)
    write_run(tmp_path / "other", SIBP, 0, **identity.LATER | {"label_noise": 0.4})
    plain, noisy = problems(tmp_path)
    assert [method.name for method in plain.methods] == ["sgd", "sibp cg:5"]
    assert "label_noise=0.4" in noisy.title


@pytest.mark.parametrize("name", ["sibp", "proxbp"])
def test_an_optimizer_from_before_its_options_existed_is_one_with_their_defaults(tmp_path, name):
    later = identity.LATER_OF_OPTIMIZER[name]
    now = compose([f"optimizer={name}"])
    assert {key: now["optimizer"][key] for key in later} == later
    before = now | {"optimizer": {k: v for k, v in now["optimizer"].items() if k not in later}}
    assert identity.run_name(now) == identity.run_name(before)
    old, new = before["optimizer"], now["optimizer"]
    write_run(tmp_path / "old", old, 0)
    write_run(tmp_path / "new", new, 1)
    (method,) = only(tmp_path).methods
    (setting,) = method.settings
    assert [run.seed for run in setting.runs] == [0, 1]
    for key, value in {"backward_weights": "neither", "prox_weight_scaling": "relative", "line_search": True}.items():
        assert identity.digest(now | {"optimizer": new | {key: value}}) != identity.digest(now)


def test_an_mlp_from_before_its_activation_was_a_setting_is_one_of_relu(tmp_path):
    write_run(tmp_path / "old", SGD, 0)
    model = config(SGD, 0)["model"]
    write_run(tmp_path / "new", SIBP, 0, model=model | {"activation": "relu"})
    write_run(tmp_path / "other", SIBP, 0, model=model | {"activation": "tanh"})
    plain, other = sorted(problems(tmp_path), key=lambda problem: len(problem.methods), reverse=True)
    assert [method.name for method in plain.methods] == ["sgd", "sibp cg:5"]
    assert "model.activation=tanh" in other.title


def test_titles_of_very_deep_nets_are_short_and_distinct(tmp_path):
    for name, changes in {"a": {"batch_size": 50}, "b": {"batch_size": 60}, "c": {"batch_size": "60"}}.items():
        write_run(tmp_path / name, model={"name": "mlp", "hidden": [100] * 79 + [20]}, **changes)
    titles = [problem.title for problem in problems(tmp_path)]
    net = "digits · mlp 100-…-20 (80 layers)"
    assert titles[0] == f"{net} · batch 50 · 1 epoch"
    assert [title.startswith(f"{net} · batch 60 · 1 epoch") for title in titles] == [False, True, True]
    assert len(set(titles)) == 3


def test_problems_have_distinct_titles(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", batch_size=100)
    write_run(tmp_path / "c", model={"name": "mlp", "hidden": [64], "init": "normal", "init_std": 0.05})
    write_run(tmp_path / "d", epochs=None, max_steps=200)
    titles = [problem.title for problem in problems(tmp_path)]
    assert titles == [
        "digits · mlp 64 · batch 100 · 1 epoch",
        "digits · mlp 64 · batch 50 · 1 epoch · model.init=default · model.init_std=null",
        "digits · mlp 64 · batch 50 · 1 epoch · model.init=normal · model.init_std=0.05",
        "digits · mlp 64 · batch 50 · 200 steps",
    ]


def test_methods_are_optimizers_with_their_solvers_and_sgd_is_first(tmp_path):
    for i, optimizer in enumerate((SIBP, {**SIBP, "solver": "exact"}, PROXBP, SGD, {**SGD, "lr": 9.0})):
        write_run(tmp_path / str(i), optimizer)
    assert [method.name for method in only(tmp_path).methods] == ["sgd", "proxbp exact", "sibp cg:5", "sibp exact"]


def test_labels_show_what_is_in_use(tmp_path):
    write_run(tmp_path / "a", {**SGD, "momentum": 0.9, "nesterov": True})
    write_run(tmp_path / "b", {**SGD, "lr": 0})
    (method,) = only(tmp_path).methods
    assert [setting.label for setting in method.settings] == ["lr=0", "lr=0.1 momentum=0.9 nesterov=true"]


def test_same_setting_and_seed_counts_once_the_best_then_the_latest(tmp_path):
    write_run(tmp_path / "a", status=None)
    write_run(tmp_path / "b", losses=(2.0, 0.7), summary={"started": "2026-01-02"})
    write_run(tmp_path / "c", losses=(2.0, 0.6), summary={"started": "2026-01-03"})
    write_run(tmp_path / "d", losses=(2.0, None), status="diverged", summary={"started": "2026-01-09"})
    problem = only(tmp_path)
    assert [run.path.name for run in problem.runs] == ["c"]
    assert sorted(run.path.name for run, _ in problem.repeated) == ["a", "b", "d"]


def test_tuned_study_chooses_and_shows_fresh_seeds(study):
    problem = only(study)
    for method in problem.methods:
        assert method.chosen is not None
        assert method.choice is not None
        assert method.chosen.optimizer["lr"] == 0.3
        assert method.choice.tuning_seeds == {100, 101}
        assert [run.seed for run in method.runs] == [0, 1, 2, 3, 4]


def test_test_data_do_not_influence_the_choice(tmp_path):
    write_run(tmp_path / "a", {**SGD, "lr": 1.0}, losses=(2.0, 0.5), summary={"test_acc": 0.1})
    write_run(tmp_path / "b", {**SGD, "lr": 2.0}, losses=(2.0, 0.6), summary={"test_acc": 0.99})
    (method,) = only(tmp_path).methods
    assert method.chosen is not None
    assert method.chosen.optimizer["lr"] == 1.0


def test_edges_name_the_hyper_parameter(tmp_path):
    for i, (lr, weight) in enumerate([(0.1, 1), (1, 1), (10, 1), (1, 3)]):
        write_run(tmp_path / str(i), {**SIBP, "lr": lr, "prox_weight": weight}, losses=(2.0, 0.1 if i == 3 else 1.0))
    (method,) = only(tmp_path).methods
    assert method.edges() == ["prox_weight = 3 is the largest tried"]


def test_diverged_and_failed_runs_have_infinite_metrics_and_unfinished_ones_none(tmp_path):
    diverged = read_run(write_run(tmp_path / "a", losses=(2.0, 0.01, None), status="diverged"))
    failed = read_run(write_run(tmp_path / "b", losses=(2.0, 0.01), status="failed"))
    waiting = read_run(write_run(tmp_path / "c", losses=(2.0, 0.01), status=None))
    target = Target("val_acc", 0.9)
    for run in (diverged, failed):  # although both passed the target earlier
        assert outcomes.final(run, "train_loss") == INF
        assert outcomes.final(run, "val_acc") == -INF
        assert outcomes.test_metric(run, "test_acc") == -INF
        assert outcomes.best(run, "train_loss") == 0.01
        assert to_target(run, target) == (INF, INF)
    assert outcomes.final(waiting, "train_loss") is None
    assert outcomes.best(waiting, "train_loss") is None
    assert to_target(waiting, target) is None


def test_targets_are_reached_at_a_row_or_never(tmp_path):
    run = read_run(write_run(tmp_path / "a", losses=(2.0, 1.0, 0.1, 0.2), seconds_per_step=0.5))
    assert to_target(run, Target("train_loss", 1.0)) == (10, 5.0)
    assert to_target(run, Target("val_acc", 0.9)) == (20, 10.0)
    assert to_target(run, Target("train_loss", 0.05)) == (INF, INF)
    gap = read_run(write_run(tmp_path / "b", losses=(2.0, None, 0.4)))  # a value that is not finite meets no target
    assert to_target(gap, Target("train_loss", 0.5)) == (20, 0.2)
    assert to_target(gap, Target("val_acc", 0.5)) == (20, 0.2)


def test_the_choice_of_a_sweep_takes_precedence(tmp_path):
    """A sweep that chose by training loss; by validation, the default rule, the other setting would be chosen."""
    for lr, end in ((0.1, 0.2), (1.0, 0.4)):
        for seed in (100, 101):
            write_run(tmp_path / f"trial{lr}-{seed}", {**SGD, "lr": lr}, seed, (2.0, end), role="trial")
    for seed in range(5):
        write_run(tmp_path / f"final-{seed}", {**SGD, "lr": 1.0}, seed, (2.0, 0.4), role="final")
    problem = only(tmp_path)
    (method,) = problem.methods
    assert method.chosen.hyper_parameters["lr"] == 1.0
    assert [run.seed for run in method.runs] == [0, 1, 2, 3, 4]
    assert "chosen by the sweep" in choice_text(problem)
    assert "by final accuracy" not in choice_text(problem)


def test_without_a_sweep_settings_are_chosen_on_validation_data(tmp_path):
    for lr in (0.1, 1.0):
        write_run(tmp_path / f"{lr}", {**SGD, "lr": lr})
    assert "chosen on validation data only, by final accuracy" in choice_text(only(tmp_path))


def test_targets_come_from_the_runs_if_they_agree(tmp_path):
    write_run(tmp_path / "a", seed=0, target_val_acc=0.8)
    assert problems(tmp_path)[0].targets == [Target("val_acc", 0.8)]
    assert problems(tmp_path, 0.7, 0.5)[0].targets == [Target("val_acc", 0.7), Target("train_loss", 0.5)]
    write_run(tmp_path / "b", seed=1, target_val_acc=0.9)
    assert problems(tmp_path)[0].targets == []


def test_median_over_seeds_counts_a_missed_target_as_infinite(tmp_path):
    runs = [read_run(write_run(tmp_path / str(i), seed=i, losses=(2.0, end))) for i, end in enumerate((0.1, 0.9, 0.9))]
    found = outcomes.over_runs(runs, lambda run: (to_target(run, Target("train_loss", 0.5)) or (None,))[0])
    assert found is not None
    assert found.median == INF


def test_seconds_per_step_ignore_a_slow_start(tmp_path):
    folder = write_run(tmp_path / "a", losses=(2.0, 1.0, 0.9, 0.8), seconds_per_step=0.01)
    text = (folder / "metrics.jsonl").read_text()
    for old, new in (("0.3,", "9.3,"), ("0.2,", "9.2,"), ("0.1,", "9.1,")):
        text = text.replace(f'"seconds": {old}', f'"seconds": {new}')
    (folder / "metrics.jsonl").write_text(text)
    assert outcomes.seconds_per_step(read_run(folder)) == pytest.approx(0.01)


def test_equal_seconds_compare_rows_logged_by_that_time(tmp_path):
    fast = read_run(write_run(tmp_path / "a", losses=(2.0, 1.0, 0.9, 0.8, 0.7), seconds_per_step=0.01))  # ends at 0.4
    slow = read_run(write_run(tmp_path / "b", losses=(2.0, 0.5, 0.4), seconds_per_step=0.025))  # 0.25, 0.5
    assert at_equal_seconds(fast, slow, "train_loss") == (0.9, 0.5)
    assert at_equal_seconds(slow, fast, "train_loss") == (0.5, 0.9)
    slower = read_run(write_run(tmp_path / "c", losses=(2.0, 0.5), seconds_per_step=0.1))
    assert at_equal_seconds(fast, slower, "train_loss") is None
    dead = read_run(write_run(tmp_path / "d", losses=(2.0, None), status="diverged"))
    assert at_equal_seconds(fast, dead, "train_loss") == (0.7, INF)


def test_runs_of_equal_seconds_are_compared_at_their_ends(tmp_path):
    first = read_run(write_run(tmp_path / "a", losses=(2.0, 1.0, 0.5)))
    second = read_run(write_run(tmp_path / "b", losses=(2.0, 0.9, 0.6)))
    assert at_equal_seconds(first, second, "train_loss") == (0.5, 0.6)


def test_the_budget_includes_tuning(tmp_path):
    """Three trials of 0.2 s, and two final runs of 0.4 s, which alone are shown elsewhere."""
    for lr, end in ((0.1, 0.9), (0.3, 0.5), (1.0, 0.8)):
        write_run(tmp_path / f"trial{lr}", SGD | {"lr": lr}, 100, (2.0, 1.0, end), role="trial")
    for seed in range(2):
        write_run(tmp_path / f"final{seed}", SGD | {"lr": 0.3}, seed, seconds_per_step=0.02, role="final")
    problem = only(tmp_path)
    assert len(problem.methods[0].runs) == 2
    table = budget_table(problem)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["settings tried"], row["runs"], row["completed"]) == (3, 5, 5)
    assert row["total training seconds"] == pytest.approx(3 * 0.2 + 2 * 0.4)


def test_robustness_follows_the_best_of_the_other_hyper_parameters(tmp_path):
    for i, (lr, weight, end) in enumerate([(0.1, 1, 0.5), (0.1, 3, 0.4), (1, 1, 0.2), (1, 3, 0.3)]):
        write_run(tmp_path / str(i), {**SIBP, "lr": lr, "prox_weight": weight}, losses=(2.0, end))
    figure = robustness(only(tmp_path), "01")[-1]
    assert isinstance(figure, Figure)
    best, dots = figure.lines
    assert (best.x.tolist(), best.y.tolist()) == ([0.1, 1], [0.4, 0.2])
    assert sorted(dots.y.tolist()) == [0.2, 0.3, 0.4, 0.5]


def test_curves_meet_at_the_steps_of_every_completed_run(tmp_path):
    runs = [
        read_run(write_run(tmp_path / "a", losses=(2.0, 1.0, 0.5))),
        read_run(write_run(tmp_path / "b", seed=1, losses=(2.0, 1.0, 0.5, 0.4))),
        read_run(write_run(tmp_path / "c", seed=2, losses=(2.0, None), status="diverged")),
    ]
    assert common_steps(runs).tolist() == [0, 10, 20]


def test_long_lines_are_thinned_and_keep_their_ends():
    kept = thinned(np.arange(10_000))
    assert len(kept) == MAX_POINTS
    assert (kept[0], kept[-1]) == (0, 9_999)
    assert thinned(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
