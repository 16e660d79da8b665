"""Tables in docs/ whose experiment is not kept say so, and are filled later without editing the page."""

import importlib.util
from pathlib import Path

import pytest
from fake_runs import SGD, SIBP, write_run

from sibp.runs.collect import collect
from sibp.runs.packed import PACKED, pack
from sibp.study.criteria import Evidence
from sibp.study.experiments import Experiment

PROJECT = Path(__file__).parents[2]
PAGE = "Before.\n\n<!-- results/noise: test accuracy by part -->\nold\n<!-- end of table -->\n\nAfter.\n"


@pytest.fixture
def shown(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("shown_results", PROJECT / "scripts" / "shown_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = {"low": "tune x", "high": "tune x"}
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "EVIDENCE", Evidence(tmp_path))
    monkeypatch.setattr(module, "EXPERIMENTS", {"noise": Experiment("noise", "Noise?", 1, commands)})
    return module


def keep(results: Path, part: str, losses: dict[str, float]) -> None:
    for name, optimizer in (("sgd", SGD), ("sibp", SIBP)):
        for seed in range(5):
            accuracy = {"test_acc": losses[name] + seed / 1000}
            write_run(results / "made" / part / f"{name}{seed}", optimizer, seed, summary=accuracy)
    (results / "noise" / part).mkdir(parents=True)
    (results / "noise" / part / PACKED).write_text(pack(collect([results / "made" / part]).runs))


def test_a_page_names_missing_runs_and_is_filled_once_they_exist(shown, tmp_path):
    waiting = shown.filled(PAGE)
    assert "old" not in waiting
    assert "*Not run yet:* `python scripts/reproduce.py noise`\n<!-- end of table -->\n\nAfter." in waiting
    keep(tmp_path, "low", {"sgd": 0.80, "sibp": 0.90})
    assert shown.filled(waiting) == waiting  # half of an experiment fills no table
    keep(tmp_path, "high", {"sgd": 0.70, "sibp": 0.60})
    page = shown.filled(waiting)
    assert "| test acc, % | low | high |" in page
    assert "| sgd | 80.20 [80.00, 80.40] | 70.20 [70.00, 70.40] |" in page
    assert "| sibp cg:5 | 90.20 [90.00, 90.40] better | 60.20 [60.00, 60.40] worse |" in page
    assert shown.filled(page) == page


def test_the_best_median_is_bold_and_numbers_are_right_aligned(shown, tmp_path):
    keep(tmp_path, "low", {"sgd": 0.80, "sibp": 0.90})
    lines = shown.comparison(Evidence(tmp_path).problem("noise/low")).splitlines()
    assert lines[0].startswith("| method | setting | test accuracy, % | training loss |")
    assert lines[1] == "| --- | --- | ---: | ---: | --- | --- | --- | ---: |"
    (sgd,) = (line for line in lines if line.startswith("| sgd |"))
    (sibp,) = (line for line in lines if line.startswith("| sibp cg:5 |"))
    assert "| **90.20** [90.00, 90.40] |" in sibp
    assert "| 80.20 [80.00, 80.40] |" in sgd
    assert "| no difference | within the noise: 1 [1, 1], 1 [1, 1] | 10.0 |" in sibp  # the same losses at the same pace
    assert sgd.endswith("| – | – | – | 10.0 |")


def test_a_missing_picture_leaves_no_dead_link(shown, tmp_path):
    page = "<!-- results/noise: picture -->\n<!-- end of table -->\n"
    assert "*Not run yet:* `python scripts/reproduce.py noise`" in shown.filled(page)
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "noise.svg").touch()
    assert "![Noise?](../results/noise/noise.svg)" in shown.filled(page)


def test_the_arena_is_filled_problem_by_problem(shown, tmp_path, monkeypatch):
    """Of two problems one is kept: the standings are over that one, and the other says what runs it."""
    names = ("arena/one", "arena/two")
    monkeypatch.setattr(shown, "EXPERIMENTS", {name: Experiment(name, "Who?", 1, {".": "tune x"}) for name in names})
    tables = ("arena: validation standings", "arena/one: outcome", "arena/two: outcome", "arena: picture")
    page = "".join(f"<!-- results/{each} -->\n<!-- end of table -->\n" for each in tables)
    assert shown.filled(page).count("*Not run yet:* `python scripts/reproduce.py arena/one`") == 3
    for seed in range(5):
        write_run(tmp_path / "made" / f"sgd{seed}", SGD, seed, (2.3, 1.0, 0.5))
        write_run(tmp_path / "made" / f"sibp{seed}", SIBP, seed, (2.3, 0.4, 0.3))
    (tmp_path / "arena" / "one").mkdir(parents=True)
    (tmp_path / "arena" / "one" / PACKED).write_text(pack(collect([tmp_path / "made"]).runs))
    (tmp_path / "arena" / "arena.svg").touch()
    filled = shown.filled(page)
    assert "*Not run yet:* `python scripts/reproduce.py arena/two`" in filled
    assert filled.count("Not run yet") == 1
    assert "| sibp cg:5 | 1 | **1** [1, 1] | **100** | **1.00** [1.00, 1.00] | **100** |" in filled
    assert "steps to val acc ≥ 0.606531" in filled
    assert "](../results/arena/arena.svg)" in filled


def test_a_duel_has_a_verdict_for_every_problem(shown, tmp_path):
    """SIBP needs half of SGD's steps, each three times as expensive; there is no other rival."""
    for seed in range(5):
        write_run(tmp_path / "made" / f"sgd{seed}", SGD, seed, (2.3, 1.0, 0.5))
        write_run(tmp_path / "made" / f"sibp{seed}", SIBP, seed, (2.3, 0.4, 0.3), seconds_per_step=0.03)
    (tmp_path / "arena").mkdir()
    (tmp_path / "arena" / PACKED).write_text(pack(collect([tmp_path / "made"]).runs))
    lines = shown.duel("arena", "sibp cg:5", "sgd").splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("| sibp cg:5 against sgd |")
    assert lines[2].endswith("| better | better | better | worse | better | worse |")
    assert len(shown.duel("arena", "sibp cg:5", "muon").splitlines()) == 2
