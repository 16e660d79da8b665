"""The arena's rules on made-up runs whose outcome is known."""

import json
import math
import os

import pytest
from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.analysis.arena import COSTS, contests, costs, own_names, pace, standings
from sibp.analysis.comparison import compare
from sibp.report.__main__ import main
from sibp.report.arena_page import against, build_arena, profiles, scores, standing_table
from sibp.report.blocks import Figure, Table
from sibp.report.styles import MUTED
from sibp.runs.collect import collect
from sibp.study.pictures import arena_picture

INF = math.inf
EASY = {"dataset": {"name": "digits"}}
HARD = {"dataset": {"name": "mnist"}}


@pytest.fixture
def root(tmp_path):
    """Two problems, three seeds.

    SGD ends with a loss of 0.5, 0.4, 0.3 after 30 steps of 0.01 s: the target is 0.4, missed by its first seed. SIBP
    is there after 10 steps of 0.02 s, on the hard problem after 20, but for one seed that diverged. ProxBP was only
    entered for the easy one, and is never there.
    """
    for name, problem in (("easy", EASY), ("hard", HARD)):
        for seed, end in enumerate((0.5, 0.4, 0.3)):
            write_run(tmp_path / name / f"sgd{seed}", SGD, seed, (2.3, 1.0, 0.9, end), **problem)
            bad = name == "hard" and seed == 2
            losses = (2.3, 0.3, 0.2, 0.1) if name == "easy" else (2.3, 0.5, 0.35, None if bad else 0.1)
            ending = "diverged" if bad else "completed"
            write_run(tmp_path / name / f"sibp{seed}", SIBP, seed, losses, ending, 0.02, **problem)
    for seed in range(3):
        write_run(tmp_path / "easy" / f"proxbp{seed}", PROXBP, seed, (2.3, 2.0, 1.9, 1.8), **EASY)
    return tmp_path


def found_in(*folders):
    return contests(compare(collect(folders).runs, None, None), own_names(folders, []))


def test_the_targets_are_sgds_final_medians(root):
    for contest in found_in(root):
        assert [target.title for target in contest.targets.values()] == ["val acc ≥ 0.67032", "train loss ≤ 0.4"]
        assert contest.targets["validation"].value == pytest.approx(math.exp(-0.4))
        assert contest.seeds == [0, 1, 2]


def test_the_cost_is_the_first_row_that_meets_the_target(root):
    easy, hard = found_in(root)
    none = {cost: INF for cost in COSTS}
    late = {"steps": 30, "seconds": pytest.approx(0.3), "seconds with tuning": pytest.approx(0.3)}
    assert costs(easy.entry("sgd"), easy.targets["training"]) == {0: none, 1: late, 2: late}
    early = {"steps": 20, "seconds": pytest.approx(0.4), "seconds with tuning": pytest.approx(0.4)}
    # The last seed reached the target, then diverged.
    assert costs(hard.entry("sibp cg:5"), hard.targets["training"]) == {0: early, 1: early, 2: none}


def test_seconds_are_steps_times_the_median_time_of_a_step(tmp_path):
    for seed, seconds in enumerate((0.01, 0.01, 5.0)):
        write_run(tmp_path / f"sgd{seed}", SGD, seed, (2.3, 1.0, 0.5), seconds_per_step=seconds)
    (contest,) = found_in(tmp_path)
    sgd = contest.entry("sgd")
    assert pace(sgd) == pytest.approx(0.01)
    assert [cost["seconds"] for cost in costs(sgd, contest.targets["training"]).values()] == pytest.approx([0.2] * 3)


def test_occasional_work_counts_in_the_pace(tmp_path):
    """One second in one of three measured intervals, which the median of the intervals would miss."""
    folder = write_run(tmp_path / "sgd", SGD, 0, (2.3, 1.0, 0.9, 0.5))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[2:]:
        row["seconds"] += 1
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (contest,) = found_in(tmp_path)
    assert pace(contest.entry("sgd")) == pytest.approx(1.3 / 30)


def test_standings_over_two_problems(root):
    """Six instances. Where SGD misses its own median, only SIBP reaches it; a method not entered has failed."""
    table = {each.name: each for each in standings(found_in(root))}
    assert list(table) == ["sibp cg:5", "sgd", "proxbp exact"]
    assert {name: each.entered for name, each in table.items()} == {"sgd": 2, "sibp cg:5": 2, "proxbp exact": 1}
    assert table["sibp cg:5"].ratios["training", "steps"] == [1, 1, 1, 1, 1, INF]
    assert table["sgd"].ratios["training", "steps"] == [INF, 3, 3, INF, 1.5, 1]
    assert table["proxbp exact"].ratios["validation", "steps"] == [INF] * 6
    seconds = table["sgd"].ratios["training", "seconds"]
    assert seconds == [INF, pytest.approx(1.5), pytest.approx(1.5), INF, 1, 1], "SIBP's steps take twice as long"
    assert table["sibp cg:5"].places["validation"].median == 1, "the largest accuracy is the first place"
    ours = table["sibp cg:5"].scores["training", "steps"]
    assert (ours.median, ours.high, ours.count) == (pytest.approx(5 / 6), 1, 6)
    assert ours.low <= 2 / 3, "the hard problem drawn twice, and its bad seed as often as it is there"
    assert table["proxbp exact"].scores["training", "steps"].high == 0
    assert [each.firsts["training", "steps"] > 0.5 for each in table.values()] == [True, False, False]
    places = table["proxbp exact"].places["training"]
    assert places.median == 3, "3, 3, 3 where it was last, then 3, 3 and 2.5 with SIBP's diverged run"
    assert 2.5 <= places.low < 3


def test_six_profiles_are_coloured_and_the_rest_is_grey(tmp_path):
    names = [f"m{i}" for i in range(8)]
    for i, name in enumerate(names):
        for seed in (0, 1):
            write_run(tmp_path / f"{name}{seed}", {**SIBP, "name": name}, seed, (2.3, *[1.0] * i, 0.4))
    for seed in (0, 1):
        write_run(tmp_path / f"sgd{seed}", SGD, seed, (2.3, *[1.0] * 8, 0.4))
    table = standings(found_in(tmp_path))
    for figure in (*scores(table), *profiles(table)):
        muted = {line.label for line in figure.lines if line.muted}
        best = {line.label for line in figure.lines} - muted
        assert len(best) == 6
        assert {"m0 cg:5", "m1 cg:5"} <= best
        assert "sgd" in muted
    svg = arena_picture(table).decode()
    assert svg.count(MUTED) > 0


def test_one_problem_is_enough_and_no_sgd_is_one_sentence(root, capsys, tmp_path):
    assert standings(found_in(root / "hard"))[0].name == "sibp cg:5"
    write_run(tmp_path / "alone" / "sibp", SIBP, 0)
    assert main([str(tmp_path / "alone"), "--arena", "--out", str(tmp_path / "x.html")]) == 2
    assert "no run of sgd completed" in capsys.readouterr().err
    assert main([str(root), "--arena", "--target-acc", "0.9"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_target_reached_late_is_reached(tmp_path):
    """SGD needs 50 times SIBP's steps, beyond the edge of the drawn profiles."""
    write_run(tmp_path / "sgd", SGD, 0, (2.3, *[1.0] * 49, 0.4))
    write_run(tmp_path / "sibp", SIBP, 0, (2.3, 0.4))
    table = standings(found_in(tmp_path))
    assert {each.name: each.ratios["training", "steps"] for each in table} == {"sibp cg:5": [1], "sgd": [50]}
    shown = standing_table(table, "training")
    at = list(shown.columns).index("target reached")
    assert {row[0]: row[at] for row in shown.rows} == {"sibp cg:5": 1.0, "sgd": 1.0}


def test_methods_have_the_names_of_their_sweep(root):
    record = {"methods": [{"name": "ours", "optimizer": {"name": "sibp", "solver": "cg:5", "prox_weight": 1.0}}]}
    (root / "easy" / "tuning.json").write_text(json.dumps(record))
    assert [each.name for each in standings(found_in(root))] == ["ours", "sgd", "proxbp exact"]


def test_methods_with_one_name_in_two_sweeps_are_not_merged(root):
    for name, optimizer in (("a", SIBP), ("b", PROXBP)):
        record = {"methods": [{"name": "ours", "optimizer": optimizer}]}
        (root / name).mkdir()
        (root / name / "tuning.json").write_text(json.dumps(record))
    found = {contest.problem.dataset: [method.name for method in contest.entered] for contest in found_in(root)}
    assert found == {"digits": ["sgd", "proxbp exact", "sibp cg:5"], "mnist": ["sgd", "ours"]}


@pytest.mark.parametrize(("column", "title"), [("val_acc", "final val acc"), ("train_loss", "final train loss")])
def test_a_metric_that_sgd_lacks_is_named(root, column, title, capsys):
    for path in root.glob("easy/sgd*/metrics.jsonl"):
        rows = [json.loads(line) | {column: None} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(root), "--arena", "--out", str(root / "x.html")]) == 2
    assert f"sgd has no {title}, but it is the arena's target." in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", ["[]", "", '{"methods": 3}', "[" * 100_000, "9" * 5000, "a pipe", "a folder"])
def test_an_invalid_tuning_record_is_listed_and_the_arena_is_written(root, content, tmp_path, capsys):
    path = root / "easy" / "tuning.json"
    if content == "a pipe":
        os.mkfifo(path)
    elif content == "a folder":
        path.mkdir()
    else:
        path.write_text(content)
    assert main([str(root), "--arena", "--out", str(tmp_path / "x.html")]) == 0
    assert "1 of them broken" in capsys.readouterr().out
    assert "it is not a record of a sweep" in (tmp_path / "x.html").read_text()


def test_one_against_another_is_paired_by_seed(tmp_path):
    """SIBP needs half of SGD's steps, each a little more than twice as expensive: better by steps, worse by seconds."""
    for seed in range(5):
        write_run(tmp_path / f"sgd{seed}", SGD, seed, (2.3, 1.0 + seed, 0.5))
        write_run(tmp_path / f"sibp{seed}", SIBP, seed, (2.3, 0.5, 0.5 + seed / 10), seconds_per_step=0.021)
    (contest,) = found_in(tmp_path)
    _, loss, *_, steps, seconds = against(contest, contest.entry("sibp cg:5"), contest.entry("sgd"))
    assert loss == "no difference"  # equal at the first seed
    assert (steps, seconds) == ("better", "worse")
    assert contest.entry("muon") is None


def test_the_page_shows_what_was_computed(root, tmp_path):
    collection, found = collect([root]), found_in(root)
    document = build_arena(collection, found, "python -m sibp.report x --arena")
    assert document.title == "The arena: 3 methods, 2 problems"
    blocks = [block for _, block in document.blocks()]
    training = next(block for block in blocks if isinstance(block, Table) and block.name == "standings-training")
    row = dict(zip(training.columns, training.rows[0], strict=True))
    assert row["method"] == "sibp cg:5"
    assert row["target reached"] == pytest.approx(5 / 6)
    assert row["score in steps"].median == pytest.approx(5 / 6)
    assert row["score in seconds"].median == pytest.approx((4 + (4 - 4 / 3) / 3) / 6)
    assert sum(row[-1] for row in training.rows) == pytest.approx(1), "somebody is the first in every resample"
    figures = [block for block in blocks if isinstance(block, Figure)]
    assert [f.name.partition("-")[0] for f in figures] == ["score"] * 4 + ["profile"] * 4
    scores = next(f for f in figures if f.name == "score-training-steps")
    assert scores.rows[0] == "sibp cg:5"
    assert scores.lines[0].x == pytest.approx([5 / 6])
    steps = next(f for f in figures if f.name == "profile-training-steps")
    line = next(line for line in steps.lines if line.group == "sgd")
    assert list(zip(line.x, line.y, strict=True)) == [
        (1, 1 / 6), (1.5, 1 / 6), (1.5, 2 / 6), (3, 2 / 6), (3, 4 / 6), (10, 4 / 6),
    ]  # fmt: skip
    tables = [block for block in blocks if isinstance(block, Table) and block.name == "outcome"]
    hard = {row[0]: dict(zip(tables[1].columns, row, strict=True)) for row in tables[1].rows}
    assert hard["sibp cg:5"]["step cost against SGD"] == pytest.approx(2)
    assert hard["sibp cg:5"]["completed"] == 2
    assert hard["sgd"]["steps to train loss ≤ 0.4"].median == 30
