"""Verdicts by wall-clock time: the break-even cost ratio beside the measured one."""

import json
import math
from pathlib import Path

import pytest
from fake_runs import SGD, SIBP, write_run

from sibp.analysis.clock import NOISE, break_evens, by_the_clock, read_clock, time_by
from sibp.analysis.comparison import Problem, compare
from sibp.analysis.outcomes import training_seconds
from sibp.analysis.statistics import holm
from sibp.report.__main__ import main
from sibp.runs.collect import collect
from sibp.runs.values import UsageError

SLOW = [(2.0, 1.0, 0.5, 0.4)] * 5  # 30 steps
FAST = [(2.0, 0.4, 0.2, 0.1), (2.0, 0.4, 0.2, 0.1), (2.0, 0.4, 0.2, 0.1), (2.0, 0.5, 0.4, 0.1), (2.0, 0.4, 0.2, 0.1)]


def problem(root, sgd=SLOW, sibp=FAST, pace: float = 0.02) -> Problem:
    for name, optimizer, losses, seconds in (("sgd", SGD, sgd, 0.01), ("sibp", SIBP, sibp, pace)):
        for seed, each in enumerate(losses):
            end = "completed" if each[-1] is not None else "diverged"
            write_run(root / f"{name}{seed}", optimizer, seed, each, end, seconds)
    (found,) = compare(collect([root]).runs, None, None)
    return found


def test_break_even_is_the_rivals_steps_over_the_methods_own(tmp_path):
    sgd, sibp = problem(tmp_path).methods
    # SIBP reaches SGD's final 0.4 at step 10 (20 on one seed); SGD never reaches SIBP's 0.1.
    assert break_evens(sibp, sgd) == [3.0, 3.0, 3.0, 1.5, 3.0]
    assert break_evens(sgd, sibp) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 1 / 3])


def test_equal_final_losses_need_no_step_after_they_are_reached(tmp_path):
    """Both end at 0.4 after 20 steps; SIBP was there after 10, so its steps may cost twice as much as SGD's."""
    sgd, sibp = problem(tmp_path, sgd=[(2.0, 1.0, 0.4)], sibp=[(2.0, 0.4, 0.4)]).methods
    assert break_evens(sibp, sgd) == [2.0]
    assert break_evens(sgd, sibp) == [1.0]


def test_a_diverged_run_may_cost_nothing(tmp_path):
    sgd, sibp = problem(
        tmp_path, sgd=[(2.0, 1.0, 0.5, None), SLOW[0]], sibp=[(2.0, 1.0, 0.5, 0.4), (2.0, None)]
    ).methods
    assert break_evens(sibp, sgd) == [math.inf, 0.0]


@pytest.mark.parametrize(("pace", "word"), [(0.012, "better"), (0.02, NOISE), (0.029, NOISE), (0.031, "worse")])
def test_a_verdict_by_the_clock_needs_disjoint_intervals(tmp_path, pace, word):
    # Break-even is 3 [1.5, 3] at the median of five seeds: 1.2 lies below, 2 and 2.9 inside, 3.1 above.
    found = {each.method.name: each for each in by_the_clock(problem(tmp_path, pace=pace))}
    assert found["sibp cg:5"].measured.median == pytest.approx(100 * pace)
    assert (found["sibp cg:5"].break_even.low, found["sibp cg:5"].break_even.high) == (1.5, 3.0)
    assert found["sibp cg:5"].word == word
    assert found["sgd"].word == {"better": "worse", "worse": "better"}.get(word, word)


def test_four_seeds_decide_nothing_by_the_clock(tmp_path):
    found = by_the_clock(problem(tmp_path, sgd=SLOW[:4]))
    assert {each.word for each in found} == {"too few seeds"}


def clock_file(root, **changes):
    samples = {"sgd": [0.001, 0.0011, 0.0009, 0.001], "cg:5": [0.0011, 0.00121, 0.00099, 0.0011]}
    case = {"net": "64-64-10", "batch": 50, "seconds_per_step": samples, **changes}
    (root / "clock.json").write_text(json.dumps({"command": "step", "cases": [case]}))
    return root / "clock.json"


def test_a_clock_of_one_thread_is_the_processor_s(tmp_path):
    """Other processes lengthen wall-clock time; with threads or a GPU, processor time is not a step's duration."""
    found, path = problem(tmp_path / "runs", pace=0.031), clock_file(tmp_path)
    record = json.loads(path.read_text())
    record["cases"][0]["processor_seconds_per_step"] = {"sgd": [0.5], "cg:5": [0.6]}
    for machine, expected in (
        ({"device": "cpu", "threads": 1}, [0.5]),
        ({"device": "cpu", "threads": 2}, [0.001, 0.0011, 0.0009, 0.001]),
        ({"device": "cuda", "threads": 1}, [0.001, 0.0011, 0.0009, 0.001]),
    ):
        path.write_text(json.dumps({**record, "machine": machine}))
        clock = read_clock(path, found)
        assert clock is not None
        assert clock["sgd"] == expected


def test_a_separately_measured_clock_decides_by_interleaved_samples(tmp_path, capsys):
    found = problem(tmp_path / "runs", pace=0.031)
    clock = read_clock(clock_file(tmp_path), found)
    assert clock is not None
    assert set(clock) == {"sgd", "sibp cg:5"}
    words = [str(tmp_path / "runs"), "--out", str(tmp_path / "report.html"), "--clock", str(tmp_path / "clock.json")]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A step of sibp cg:5 costs 1.1 [1.1, 1.1] times one of sgd, and sibp cg:5 would still be ahead " in said
    assert "By the clock (seconds per step measured separately, interleaved), sibp cg:5 is better than sgd." in said


def test_runs_take_the_clock_s_time_for_each_step(tmp_path):
    """The runs' own 0.031 s of SIBP, three times SGD's, become the record's 0.0011 s: 1.1 times."""
    found = problem(tmp_path / "runs", pace=0.031)
    clock = read_clock(clock_file(tmp_path), found)
    assert clock is not None
    time_by(found, clock)
    sgd, sibp = found.methods
    assert found.clock == clock
    assert sgd.runs[0].columns["seconds"].tolist() == pytest.approx([0.001 * step for step in (0, 10, 20, 30)])
    assert training_seconds(sibp.runs[0]) == pytest.approx(30 * 0.0011)
    assert sibp.step_seconds() == pytest.approx(0.0011)
    assert any(setting is sibp.chosen for setting in sibp.settings)
    assert all(run in sibp.all_runs for run in sibp.runs)  # the same objects in every collection


def test_a_method_that_the_clock_lacks_keeps_its_seconds(tmp_path):
    found = problem(tmp_path)
    time_by(found, {"sgd": [0.5]})
    sgd, sibp = found.methods
    assert (sgd.step_seconds(), sibp.step_seconds()) == (0.5, pytest.approx(0.02))


def test_a_clock_of_another_network_is_not_used(tmp_path):
    found = problem(tmp_path / "runs")
    assert read_clock(clock_file(tmp_path, net="784-500-10"), found) is None
    assert read_clock(clock_file(tmp_path, batch=100), found) is None


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', '{"cases": [{"net": "x"}]}', "{}", "[" * 100_000])
def test_an_invalid_clock_file_is_refused_in_one_sentence(tmp_path, text, capsys):
    found = problem(tmp_path / "runs")
    (tmp_path / "clock.json").write_text(text)
    with pytest.raises(UsageError, match="is not a record of `sibp bench runs` or `step`"):
        read_clock(tmp_path / "clock.json", found)
    assert main([str(tmp_path / "runs"), "--clock", str(tmp_path / "nowhere.json")]) == 2
    assert "nowhere.json is not a record" in capsys.readouterr().err


@pytest.mark.parametrize("samples", ["[]", '"123"', "[0]", "[-1]", "[NaN]", "[Infinity]", "[null]", f"[1{'0' * 400}]"])
def test_seconds_of_a_clock_are_numbers_above_0(tmp_path, samples):
    found, path = problem(tmp_path / "runs"), clock_file(tmp_path, seconds_per_step="SAMPLES")
    path.write_text(path.read_text().replace('"SAMPLES"', f'{{"sgd": [1.0], "cg:5": {samples}}}'))
    with pytest.raises(UsageError, match="is not a record of"):
        read_clock(path, found)


def test_a_clock_of_other_networks_alone_is_refused(tmp_path, capsys):
    problem(tmp_path / "runs")
    path = clock_file(tmp_path, net="784-500-10")
    assert main([str(tmp_path / "runs"), "--clock", str(path), "--out", str(tmp_path / "x.html")]) == 2
    assert f"{path} has no seconds per step of 64-64-10 with batches of 50" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_a_clock_without_an_end_is_refused(tmp_path, monkeypatch):
    found = problem(tmp_path / "runs")
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("it is read without a limit"))
    with pytest.raises(UsageError, match=r"/dev/zero is not a record .*zero is not a file"):
        read_clock(Path("/dev/zero"), found)


def test_holm_multiplies_the_smallest_most_and_preserves_the_order():
    """By definition, the k-th smallest of m is significant if all up to it are below level / (m - k + 1)."""
    for probabilities in ([0.01, 0.02, 0.03], [0.5, 0.01, 0.04, 0.04], [0.9, 0.8], [0.0625] * 15, []):
        ordered = sorted(probabilities)
        for level in (0.01, 0.03, 0.05, 0.1, 0.5, 0.99):
            rejected = 0
            while rejected < len(ordered) and ordered[rejected] <= level / (len(ordered) - rejected) * (1 + 1e-12):
                rejected += 1
            assert sum(p <= level * (1 + 1e-9) for p in holm(probabilities)) == rejected


def test_an_absurd_loss_counts_as_diverged(tmp_path):
    write_run(tmp_path / "a", SGD, 0, (2.0, 1.0, 1e26))
    write_run(tmp_path / "b", SGD, 1, (2.0, 1.0, 1900.0))
    first, second = collect([tmp_path]).runs
    assert (first.status, second.status) == ("diverged", "completed")
    assert first.notes == ("taken as diverged: the training loss ended at 1e+26",)


def test_an_ordinary_loss_after_a_tiny_one_is_no_divergence(tmp_path):
    """0.5 is 5,000 times the initial loss; where that is below 1, the limit is 1,000 times 1."""
    write_run(tmp_path / "a", SGD, 0, (1e-4, 0.5))
    write_run(tmp_path / "b", SGD, 1, (1e-4, 1001.0))
    first, second = collect([tmp_path]).runs
    assert (first.status, second.status) == ("completed", "diverged")
