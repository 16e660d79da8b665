"""Verdicts recomputed without the report's code agree with it on made-up runs; a changed verdict is noticed."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "report"))

from fake_runs import PROXBP, SGD, SIBP, write_run  # noqa: E402

from sibp.runs.collect import collect  # noqa: E402
from sibp.runs.packed import PACKED, pack  # noqa: E402
from sibp.study.claims import Better, Claim, Every  # noqa: E402
from sibp.study.claims_page import csv_text, judged  # noqa: E402
from sibp.study.credit import tables  # noqa: E402
from sibp.study.criteria import Evidence  # noqa: E402
from sibp.study.untuned import tables as untuned_tables  # noqa: E402

AUTO = {"name": "sibp_auto", "lr": 10.0, "prox_weight": 1.0}


@pytest.fixture
def script(tmp_path, monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("recompute", ROOT / "scripts" / "recompute_verdicts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.raw_runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["recompute_verdicts.py"])
    (tmp_path / "docs").mkdir(parents=True)
    for page in ("findings.md", "untuned.md"):
        (tmp_path / "docs" / page).write_text("no tables\n")
    return module


def keep(tmp_path: Path) -> None:
    """Two settings of SGD, of which the sweep chose the one worse by accuracy; one run of SIBP diverged."""
    made = tmp_path / "made"
    for lr, end in ((0.1, 0.30), (1.0, 0.20), (10.0, 0.9)):
        for seed in (100, 101, 102):
            optimizer = SGD | {"lr": lr}
            write_run(made / f"t{lr}{seed}", optimizer, seed, (2.0, 1.0, end + seed / 1e4), role="trial")
    for seed in range(10):
        write_run(made / f"s{seed}", SGD | {"lr": 0.1}, seed, (2.0, 1.0, 0.31 + seed / 100), role="final")
        end, status = (None, "diverged") if seed == 3 else (0.2 + seed / 100, "completed")
        write_run(made / f"i{seed}", SIBP, seed, (2.0, 0.8, end), status, seconds_per_step=0.015, role="final")
        write_run(made / f"p{seed}", PROXBP, seed, (2.0, 0.9, 0.3 + seed / 100), role="final")
    place = tmp_path / "results" / "one"
    place.mkdir(parents=True)
    (place / PACKED).write_text(pack(collect([made]).runs))
    (place / "limits.json").write_text('{"limits": [{"gradient": 1e-9}, {"gradient": 0.5}]}')


def publish(tmp_path: Path) -> str:
    quantities = ("training loss", "training accuracy", "validation accuracy", "test accuracy")
    steps = ("range of step sizes", "reach above the best step size", "room before divergence", "width of step sizes")
    settings: dict[str, Any] = {"prox_weight": 1.0, "momentum": 0.0}
    criteria: list[Any] = [Better("sibp cg:5", o, q, "one") for q in quantities for o in ("sgd", "proxbp exact")]
    criteria += [Better("sgd", "proxbp exact", q, "one", None, at) for q in steps for at in ({}, settings)]
    criteria += [
        Better("sgd", "sibp cg:5", "training loss", "one", "one"),
        Every("limits.gradient", "one/limits.json", 1e-6, True),
    ]
    text = csv_text(judged([Claim("made-up", "Who?", "?", criteria)], Evidence(tmp_path / "results")))
    (tmp_path / "results" / "claims.csv").write_text(text)
    return text


def test_recomputed_verdicts_agree(tmp_path, script, capsys):
    keep(tmp_path)
    assert "better" in publish(tmp_path)
    assert script.main() == 0
    assert "all agree" in capsys.readouterr().out


@pytest.mark.parametrize(("old", "new"), [(",better,", ",worse,"), ("made-up,yes,no,", "made-up,yes,yes,")])
def test_a_changed_verdict_is_detected(tmp_path, script, capsys, old, new):
    keep(tmp_path)
    text = publish(tmp_path)
    assert old in text
    (tmp_path / "results" / "claims.csv").write_text(text.replace(old, new, 1))
    assert script.main() == 1
    assert "DIFFERS  made-up: " in capsys.readouterr().out


def test_a_changed_row_is_detected(tmp_path, script):
    keep(tmp_path)
    publish(tmp_path)
    kept = tmp_path / "results" / "one" / PACKED
    text = kept.read_text()
    assert "0.31" in text
    kept.write_text(text.replace("0.31", "0.11"))
    assert script.main() == 1


@pytest.mark.parametrize("changed", [False, True])
def test_the_tables_of_parts_are_recomputed_from_the_rows(tmp_path, script, capsys, changed):
    """The activation inside lowers the loss on every seed through both weights; new weights raise it."""
    exact, inside = SIBP | {"solver": "exact"}, SIBP | {"solver": "cg:3"}
    methods = [(PROXBP, 0.3), (exact, 0.4), (inside | {"backward_weights": "old"}, 0.1), (inside, 0.2)]
    for number, (optimizer, end) in enumerate(methods):
        for seed in range(10):
            losses = (2.0, 1.0, end + seed / 1000)
            write_run(tmp_path / "made" / f"{number}-{seed}", optimizer, seed, losses, role="final")
    place = tmp_path / "results" / "two"
    place.mkdir(parents=True)
    (place / PACKED).write_text(pack(collect([tmp_path / "made"]).runs))
    table = tables(Evidence(tmp_path / "results"))["2 x 2 by training loss"]("two")
    assert "| inside, against linear | better, 10 of 10 seeds | better, 10 of 10 seeds |" in table
    if changed:
        table = table.replace("worse, 0 of 10", "better, 10 of 10", 1)
    begin = "<!-- results/two: 2 x 2 by training loss -->"
    (tmp_path / "docs" / "findings.md").write_text(f"{begin}\n{table}<!-- end of table -->\n")
    (tmp_path / "results" / "claims.csv").write_text("claim\n")
    assert script.main() == changed
    assert ("DIFFERS  findings.md, two, sibp exact against proxbp exact" in capsys.readouterr().out) == changed


@pytest.mark.parametrize(
    ("title", "changed"),
    [
        ("untuned training loss", ""),
        ("untuned training loss", "0.3 worse"),
        ("untuned validation", "0.741 worse"),
        ("untuned by the clock", "0.50 better"),
    ],
)
def test_verdicts_on_untuned_methods_are_recomputed_from_the_rows(
    tmp_path, script, monkeypatch, capsys, title, changed
):
    """AutoSIBP ends lower on all seeds. SGD falls below its rival's end in as many steps, each half as long."""
    results = tmp_path / "results"
    for place, optimizer, losses in (("untuned_peers", SGD, (2.0, 1.0, 0.3)), ("auto_untuned", AUTO, (2.0, 0.5, 0.2))):
        for seed in range(7 if place == "auto_untuned" else 5):
            ends = (*losses[:2], losses[2] + seed / 1e6)
            write_run(tmp_path / place / str(seed), optimizer, seed, ends)
        (results / place / "some_part").mkdir(parents=True)
        (results / place / "some_part" / PACKED).write_text(pack(collect([tmp_path / place]).runs))
    paces = {"sgd": [0.1, 0.1], "sibp_auto": [0.2, 0.2]}
    cases = [{"net": "64-64-10", "batch": 50, "processor_seconds_per_step": paces, "seconds_per_step": paces}]
    (results / "bench").mkdir()
    record = {"machine": {"device": "cpu", "threads": 1}, "cases": cases}
    (results / "bench" / "runs-cpu-1thread.json").write_text(json.dumps(record))
    monkeypatch.setattr(script.raw_runs, "RECORD", results / "bench" / "runs-cpu-1thread.json")
    table = untuned_tables(results)[title]("untuned_peers")
    assert table.splitlines()[0] == "| method | some part | better, worse |"
    assert changed in table
    if changed:
        table = table.replace(changed, changed.partition(" ")[0] + " no difference")
    begin = f"<!-- results/untuned_peers: {title} -->"
    (tmp_path / "docs" / "untuned.md").write_text(f"{begin}\n{table}<!-- end of table -->\n")
    (results / "claims.csv").write_text("claim\n")
    assert script.main() == bool(changed)
    assert ("DIFFERS  untuned.md, sgd on some part" in capsys.readouterr().out) == bool(changed)


@pytest.mark.parametrize("changed", [False, True])
def test_verdicts_on_both_processors_are_recomputed_from_the_rows(tmp_path, script, monkeypatch, changed):
    """SIBP falls below SGD's end in half as many steps: one record has its steps at 1.5 times SGD's, the other at 3."""
    results = tmp_path / "results"
    for optimizer, losses in ((SGD, (2.0, 1.0, 0.5)), (SIBP, (2.0, 0.4, 0.3))):
        for seed in range(5):
            write_run(tmp_path / "made" / f"{optimizer['name']}{seed}", optimizer, seed, losses, role="final")
    (results / "two").mkdir(parents=True)
    (results / "two" / PACKED).write_text(pack(collect([tmp_path / "made"]).runs))
    for folder, cost in (("bench", 0.15), ("arena", 0.3)):
        paces = {"sgd": [0.1, 0.1], "sibp cg:5": [cost, cost]}
        cases = [{"net": "64-64-10", "batch": 50, "processor_seconds_per_step": paces, "seconds_per_step": paces}]
        (results / folder).mkdir()
        machine = {"device": "cpu", "threads": 1, "processor": f"that of {folder}"}
        record = {"machine": machine, "cases": cases}
        (results / folder / "runs-cpu-1thread.json").write_text(json.dumps(record))
    monkeypatch.setattr(script.raw_runs, "RECORD", results / "bench" / "runs-cpu-1thread.json")
    shown = importlib.import_module("shown_results")
    monkeypatch.setattr(shown, "RESULTS", results)
    table = shown.processors(Evidence(results).problem("two"))
    assert table.splitlines()[0] == "| verdict: break-even, measured | that of bench | that of arena |"
    assert "| better: 2 [2, 2], 1.5 [1.5, 1.5] | worse: 2 [2, 2], 3 [3, 3] |" in table
    if changed:
        table = table.replace("3 [3, 3]", "2.9 [2.9, 2.9]")
    page = f"<!-- results/two: processors -->\n{table}<!-- end of table -->\n"
    (tmp_path / "docs" / "findings.md").write_text(page)
    (results / "claims.csv").write_text("claim\n")
    assert script.main() == changed


def test_the_least_loss_decides_between_two_opposite_infinities(script):
    assert script.middle([-math.inf, math.inf]) == 0.0
    assert script.middle([1.0, math.inf, 2.0]) == 2.0
