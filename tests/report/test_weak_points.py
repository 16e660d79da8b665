"""What makes a comparison weak or invalid is said in the terminal and on the page."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_runs import SGD, SIBP, write_run

from sibp.report.__main__ import main

START = 2.0


@pytest.fixture
def said(tmp_path, capsys):
    """Writes the report of the runs in ``runs``; returns the terminal's text and the page as Markdown."""

    def report(*words: str) -> tuple[str, str]:
        out = str(tmp_path / "report.html")
        assert main([str(tmp_path / "runs"), "--out", out, "--format", "md", *words]) == 0
        page = (tmp_path / "report.md").read_text().replace("\\", "")
        return " ".join(capsys.readouterr().out.split()), page

    return report


def write(root: Path, optimizer: Mapping[str, Any], end: float, seeds: int = 5, **changes: Any) -> None:
    for seed in range(seeds):
        write_run(
            root / "runs" / f"{optimizer['name']}{seed}", optimizer, seed, (START, 1.0, end + seed / 100), **changes
        )


def forget_validation(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if not key.startswith("val_")} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def warnings(page: str) -> list[str]:
    return re.findall(r"\*\*Warning:\*\* (.*)", page)


@pytest.mark.parametrize(
    ("key", "what"),
    [("initial_weights_sha256", "initial weights"), ("data_sha256", "data"), ("batches_sha256", "batches")],
)
def test_nobody_wins_after_an_unequal_start(tmp_path, said, key, what):
    write(tmp_path, SGD, 0.5)
    write(tmp_path, SIBP, 0.4, summary={key: "other"})
    for text in said():
        assert f"Not comparable: runs of the same seed differ in {what}. The warnings name two of them" in text
        assert f"Unequal start: {what}" in text
        assert "(sgd0 and sibp0)" in text
        assert " won " not in text
        assert "by the clock" not in text
        assert "row against column" not in text


def test_other_losses_are_an_unequal_start_and_rounding_is_none(tmp_path, said):
    write(tmp_path, SGD, 0.5)
    for seed in range(5):
        write_run(tmp_path / "runs" / f"sibp{seed}", SIBP, seed, (START * (1 + 1e-7), 1.0, 0.4))
    terminal, page = said()
    assert "won" in terminal
    assert "Unequal start" not in page
    assert "for each seed, all runs had the same initial training loss" in page
    write_run(tmp_path / "runs" / "other", {**SIBP, "solver": "exact"}, 0, (START * 1.001, 1.0, 0.4))
    terminal, page = said()
    assert "Not comparable: runs of the same seed differ in initial training loss." in terminal


def test_an_unequal_start_outside_the_shown_runs_is_a_warning_only(tmp_path, said):
    """A setting that was not chosen started otherwise."""
    write(tmp_path, SGD, 0.5)
    write(tmp_path, SIBP, 0.4)
    write_run(tmp_path / "runs" / "worse", {**SIBP, "lr": 9.0}, 0, (3.0, 1.0, 0.9))
    terminal, page = said()
    assert "sibp cg:5 has the best median" in terminal
    assert "Unequal start" in terminal
    assert "Unequal start" in page


def test_the_terminal_has_every_warning_of_the_page(tmp_path, said):
    write(tmp_path, SGD, 0.5)
    for seed in range(5):
        ended = {"status": "failed", "summary": {"reason": "No space left on device"}} if seed < 2 else {}
        write_run(tmp_path / "runs" / f"sibp{seed}", {**SIBP, "lr": 0.1 + seed // 9}, seed, (START, 1.0, 0.4), **ended)
    terminal, page = said()
    assert len(warnings(page)) == 1
    assert all(f"Warning: {warning}" in terminal for warning in warnings(page))
    assert "failed" in warnings(page)[0]


def test_without_validation_data_the_training_loss_decides_and_the_report_says_so(tmp_path, said):
    for lr, worse in ((0.1, 0.0), (0.2, 0.3)):
        for optimizer, end in ((SGD, 0.5), (SIBP, 0.4)):
            for seed in range(5):
                name = f"{optimizer['name']}{lr}{seed}"
                losses = (START, 1.0, end + worse + seed / 100)
                forget_validation(write_run(tmp_path / "runs" / name, {**optimizer, "lr": lr}, seed, losses))
    forget_validation(write_run(tmp_path / "runs" / "bad", {**SGD, "lr": 9.0}, 0, (START, None), "diverged"))
    terminal, page = said()
    assert "Final train loss: sibp cg:5 won (0.42 [0.4, 0.44]), better than sgd" in terminal
    assert "lr=0.1 prox_weight=1 5 0.42" in terminal
    assert "lr=0.2" not in terminal
    assert "final val" not in terminal
    assert "Warning: No validation data of sgd, sibp cg:5: the final training loss decides alone." in terminal
    assert "without any, by final training loss" in page
    assert "final val loss: row against column" not in page


def test_one_method_without_validation_data_is_named(tmp_path, said):
    write(tmp_path, SGD, 0.5)
    write(tmp_path, SIBP, 0.4)
    for seed in range(5):
        forget_validation(tmp_path / "runs" / f"sgd{seed}")
    terminal, _ = said()
    assert "Final train loss: sibp cg:5 won" in terminal
    assert "No validation data of sgd: the final training loss decides alone." in terminal


def test_the_arena_needs_validation_data_of_sgd(tmp_path, capsys):
    write(tmp_path, SGD, 0.5)
    write(tmp_path, SIBP, 0.4)
    for seed in range(5):
        forget_validation(tmp_path / "runs" / f"sgd{seed}")
    assert main([str(tmp_path / "runs"), "--arena", "--out", str(tmp_path / "x.html")]) == 2
    assert "sgd has no validation data" in capsys.readouterr().err


def test_the_arena_names_no_winner_after_an_unequal_start(tmp_path, said):
    write(tmp_path, SGD, 0.5)
    write(tmp_path, SIBP, 0.4, summary={"data_sha256": "other"})
    _, page = said("--arena")
    assert "Not comparable: runs of the same seed differ in data." in page
    assert " won " not in page


@pytest.mark.parametrize(("every", "told"), [(1, False), (2, True)])
def test_other_logged_steps_are_a_warning(tmp_path, said, every, told):
    write(tmp_path, SGD, 0.5)
    write(tmp_path, SIBP, 0.4)
    for seed in range(5):
        file = tmp_path / "runs" / f"sgd{seed}" / "metrics.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[::every]))
    for text in said():
        assert ("Runs were logged at different steps (sgd 2 rows, sibp cg:5 3), on which best" in text) == told


def test_a_run_that_ended_early_was_not_logged_at_other_steps(tmp_path, said):
    write(tmp_path, SGD, 0.5)
    write_run(tmp_path / "runs" / "bad", SIBP, 0, (START, None), "diverged")
    assert "different steps" not in said()[1]


ABOUT = {"git_commit": "a", "git_dirty": False, "versions": {"sibp": "1", "torch": "2", "numpy": "3", "python": "3"}}
OTHER_CODE = {
    "the same": ({}, None),
    "commit": ({"git_commit": "b"}, "2 commits"),
    "a commit is not known": ({"git_commit": None}, None),
    "uncommitted changes": ({"git_dirty": True}, "5 of 10 with uncommitted changes"),
    "sibp": ({"versions": {"sibp": "2"}}, "2 versions of sibp"),
    "torch and numpy": ({"versions": {"torch": "3", "numpy": 4}}, "2 versions of torch, 2 versions of numpy"),
    "python": ({"versions": {"python": "4"}}, None),
    "versions are a word": ({"versions": "new"}, None),
}


@pytest.mark.parametrize("case", OTHER_CODE)
def test_other_code_is_a_warning(tmp_path, said, case):
    changes, told = OTHER_CODE[case]
    write(tmp_path, SGD, 0.5, summary={"environment": ABOUT})
    write(tmp_path, SIBP, 0.4, summary={"environment": ABOUT | changes})
    _, page = said()
    assert [each for each in warnings(page) if "code" in each] == (
        [f"Runs differ in their code: {told}."] if told else []
    )


MACHINE = {"threads": 1, "device": "cpu", "processor": "x", "kernels": "none"}
EARLIER = {
    "none": ([], None),
    "the same": ([MACHINE | {"load": 9.0}], None),
    "threads": ([MACHINE, MACHINE | {"threads": 2}], "threads"),
    "several": ([MACHINE | {"device": "cuda", "kernels": "native"}], "device, kernels"),
    "processor": ([MACHINE | {"processor": "y"}], "processor"),
    "nonsense": (["x", None], None),
    "a word": ("x", None),
}


@pytest.mark.parametrize("case", EARLIER)
def test_seconds_of_a_run_resumed_elsewhere_mix_clocks(tmp_path, said, case):
    earlier, told = EARLIER[case]
    write(tmp_path, SGD, 0.5, summary={"environment": MACHINE})
    write(tmp_path, SIBP, 0.4, summary={"environment": MACHINE, "earlier_environments": earlier})
    _, page = said()
    said_so = (
        f"5 of the shown runs were resumed with other {told}, so their seconds come from different clocks: compare "
        "steps, not seconds."
    )
    assert [each for each in warnings(page) if "were resumed" in each] == ([said_so] if told else [])
    clock = {"cases": [{"net": "64-64-10", "batch": 50, "seconds_per_step": {"sgd": [0.1], "cg:5": [0.2]}}]}
    (tmp_path / "clock.json").write_text(json.dumps(clock))
    assert "were resumed" not in said("--clock", str(tmp_path / "clock.json"))[1]  # no seconds of the runs are shown


def diverge(root: Path, optimizer: Mapping[str, Any], seeds: Sequence[int], status: str = "diverged") -> None:
    for seed in seeds:
        write_run(root / "runs" / f"{optimizer['name']}{seed}", optimizer, seed, (START, None), status)


@pytest.mark.parametrize("methods", [(SGD, SIBP), (SGD,)])
def test_nothing_is_judged_where_every_run_diverged_or_failed(tmp_path, said, methods):
    for optimizer in methods:
        diverge(tmp_path, optimizer, range(5), "failed" if optimizer is SIBP else "diverged")
    if len(methods) == 1:  # the other has not ended
        write_run(tmp_path / "runs" / "waiting", SIBP, 0, (START, 1.0), status=None)
    terminal, page = said()
    for text in (terminal, page):
        assert "share the best median" not in text
        assert "by the clock" not in text.lower()
        assert "Shown runs diverged, and count as worst: sgd (5 of 5)" in text
    if len(methods) == 2:
        assert "Final train loss: no method has a finite result at the median." in terminal
        assert "Final val acc: no method has a finite result at the median." in page
        assert "Shown runs failed, and count as worst: sibp cg:5 (5 of 5); see the table of runs." in terminal


def test_no_method_leads_with_an_infinite_median(tmp_path, said):
    diverge(tmp_path, SGD, range(3))
    write_run(tmp_path / "runs" / "end", SGD, 3, (START, 1.0, 0.4))
    diverge(tmp_path, SIBP, range(4))
    terminal, _ = said()
    assert "Final train loss: no method has a finite result at the median." in terminal
    assert "has the best median" not in terminal


def test_methods_that_diverged_have_no_verdict_by_the_clock_against_each_other(tmp_path, said):
    write(tmp_path, SGD, 0.5)
    diverge(tmp_path, SIBP, range(5))
    diverge(tmp_path, {**SIBP, "name": "proxbp"}, range(5))
    _, page = said()
    clock = page[page.index("by the clock: row against column") :].split("\n\n")[0]
    assert "within the noise" not in clock
    assert clock.count("better") == clock.count("worse") == 2
