"""What tables say, from records made up for the purpose; memory, from work whose memory is known."""

import math
import subprocess

import pytest
import torch

from sibp.bench import memory, roofline, scaling, step
from sibp.bench.nets import TARGETS, Case, choose_cases
from sibp.bench.workers import Worker
from sibp.report.blocks import Table
from sibp.runs.errors import UserError

CASE = Case("784-500-10", 100)


def tables(sections):
    return {block.name: block for section in sections for block in section.blocks if isinstance(block, Table)}


def record(**times):
    samples = {name.replace("_", ":"): [value, value * 1.1, value] for name, value in times.items()}
    peaks = {"sgd": {"peak_bytes": 100, "first_step_seconds": 0.5}, "exact": {"peak_bytes": 210}}
    return {"cases": [{"net": CASE.net, "batch": CASE.batch, "seconds_per_step": samples, "memory": peaks}]}


def test_targets_are_called_met_or_missed():
    rows = {row[0]: row for row in tables(step.sections(record(sgd=1.0, exact=1.39, cg_5=2.1, cg_3=9.0)))["step"].rows}
    assert rows["exact"][3:5] == ["≤ 1.4", "met"]
    assert rows["cg:5"][3:5] == ["≤ 2", "missed"]
    assert rows["cg:3"][3:5] == [None, None]
    assert rows["exact"][2].median == pytest.approx(1.39)
    assert rows["exact"][7:] == [pytest.approx(2.1), "missed"]
    assert rows["sgd"][5] == 500.0


@pytest.mark.parametrize(
    ("times", "pair", "ratio", "word"),
    [
        ({"paper": 40.0, "cg_5": 2.0}, "paper / cg:5", 20.0, "met"),
        ({"paper": 39.0, "cg_5": 2.0}, "paper / cg:5", 19.5, "missed"),
        ({"proxprop": 6.0, "proxbp": 1.5}, "proxprop / proxbp", 4.0, "missed"),
        ({"proxbp": 1.5, "exact": 1.0}, "proxbp / exact", 1.5, "missed"),
        ({"proxbp": 0.9, "exact": 1.0}, "proxbp / exact", 0.9, "met"),
    ],
)
def test_targets_between_methods(times, pair, ratio, word):
    (row,) = tables(step.sections(record(sgd=1.0, **times)))["pairs"].rows
    assert (row[0], row[1].median, row[3]) == (pair, pytest.approx(ratio), word)


@pytest.mark.parametrize(("spread", "word"), [((0.9, 1.3, 1.5), "narrowly met"), ((1.3, 1.5, 1.7), "narrowly missed")])
def test_a_target_within_the_spread_is_called_narrow(spread, word):
    made = record(sgd=1.0, exact=1.0)
    made["cases"][0]["seconds_per_step"] = {"sgd": [1.0] * 5, "exact": [spread[0]] * 2 + [spread[1]] + [spread[2]] * 2}
    rows = {row[0]: row for row in tables(step.sections(made))["step"].rows}
    assert rows["exact"][4] == word


def test_memory_that_could_not_be_measured_is_told():
    made = record(sgd=1.0, exact=1.2)
    made["cases"][0]["memory"]["exact"] = {"failed": "MemoryError"}
    rows = {row[0]: row for row in tables(step.sections(made))["step"].rows}
    assert rows["exact"][6:] == ["MemoryError", None, None]


def test_exponent_of_a_power_law():
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert scaling.exponent(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    noisy = [3 * size**1.7 * math.exp(0.1 * sign) for size, sign in zip(sizes, (1, -1, -1, 1), strict=True)]
    assert scaling.exponent(sizes, noisy) == pytest.approx(1.7)


def test_exponents_of_time_and_of_operations_stand_side_by_side():
    points = [
        {
            "size": n,
            "seconds_per_step": {"sgd": [n**0.5] * 5, "exact": [n**2] * 5},
            "operations": {"sgd": n, "exact": n**3},
        }
        for n in (1, 2, 4)
    ]
    made = {"net": "4-4-2", "batch": 3, "sweeps": {"batch": points}}
    rows = {row[2]: row[3:] for row in tables(scaling.sections(made))["exponents"].rows}
    assert rows == {"sgd": pytest.approx([0.5, 1.0]), "exact": pytest.approx([2.0, 3.0])}


def test_the_floor_adds_what_a_method_does_beyond_sgd():
    made = record(sgd=4.0, exact=8.0)["cases"][0]
    made |= {"size_bytes": 1.0, "bandwidth": 1.0}
    made["counted"] = {
        name: {"operations": 1.0, "bytes": 1.0, "roof_seconds": seconds} for name, seconds in (("sgd", 1), ("exact", 3))
    }
    assert roofline.floor(made, "exact") == pytest.approx(1.5)
    (table,) = tables(roofline.sections({"product_rate": 1e9, "dtype": "float32", "cases": [made]})).values()
    assert table.rows[1][-1] == "missed, below the floor"


def test_calls_raise_the_floor_by_what_they_take_beyond_sgds():
    made = record(sgd=4.0, exact=8.0)["cases"][0]
    same = {"operations": 1.0, "bytes": 1.0, "roof_seconds": 1.0}
    made |= {"size_bytes": 1.0, "bandwidth": 1.0, "counted": {"sgd": same, "exact": same}}
    assert roofline.with_calls(made, "exact") is None
    made["calls"] = {"sgd": [1.0, 2.0, 9.0], "exact": [5.0, 6.0, 7.0]}
    assert roofline.floor(made, "exact") == 1
    assert roofline.with_calls(made, "exact") == pytest.approx(1 + (6 - 2) / 4)
    (table,) = tables(roofline.sections({"product_rate": 1e9, "dtype": "float32", "cases": [made]})).values()
    assert table.rows[1][-1] == "missed, below the floor with calls"


def test_cases():
    assert choose_cases([], []) == list(TARGETS)
    assert choose_cases(["3072-2000-500-10"], []) == [Case("3072-2000-500-10", 100), Case("3072-2000-500-10", 500)]
    assert choose_cases(["5-4"], []) == [Case("5-4", 100)]
    assert choose_cases(["5-4", "784-500-10"], [7]) == [Case("5-4", 7), Case("784-500-10", 7)]
    with pytest.raises(UserError, match="--net 5-"):
        choose_cases(["5-"], [])


def test_a_stretch_starts_from_the_same_weights_and_batches():
    worker = Worker(Case("6-5-3", 4), "cg:2", dtype="float64", pool=3)
    ends = []
    for _ in range(2):
        worker.restart()
        for _ in range(4):
            worker.step()
        ends.append([p.clone() for p in worker.model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    worker.restart()
    assert not torch.equal(next(iter(worker.model.parameters())), ends[0][0])


def test_every_step_takes_the_next_batch_of_the_pool():
    worker = Worker(Case("6-5-3", 4), "sgd", pool=3)
    seen = []
    worker.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(4):
        worker.step()
    assert [any(torch.equal(x, y) for y in seen[:i]) for i, x in enumerate(seen)] == [False, False, False, True]
    assert torch.equal(seen[0], seen[3])


def test_peak_memory_is_the_largest_sum_of_what_lives_at_once():
    def work():
        a = torch.zeros(1000, dtype=torch.float64)
        b = torch.zeros(3000, dtype=torch.float64)
        del a
        c = torch.zeros(500, dtype=torch.float64)
        del b
        d = torch.zeros(2000, dtype=torch.float64)
        return c, d

    assert memory.peak_bytes(work, "cpu") == 8 * 4000


def test_memory_of_training_in_a_process_of_its_own():
    case = Case("100-80-10", 20)
    found = memory.measure(case, "exact", "cpu", "float32", 1)
    weights = sum(p.numel() for p in case.model().parameters()) * 4
    assert 2 * weights < found["peak_bytes"] < 20 * weights  # weights and their decrease at least
    assert found["first_step_seconds"] > 0


def test_a_process_that_fails_says_why(monkeypatch):
    ended = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nMemoryError\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: ended)
    assert memory.measure(CASE, "sgd", "cpu", "float32", 1) == {"failed": "MemoryError"}
