"""Tables of made-up records, and memory of work whose memory is known."""

import math
import subprocess

import pytest
import torch
import yaml
from torch import nn

from sibp.bench import memory, roofline, scaling, step
from sibp.bench.counting import layers_of
from sibp.bench.floors import floor
from sibp.bench.nets import CONVNET, NAMED, TARGETS, Case, choose_cases
from sibp.bench.workers import PEERS, Worker
from sibp.experiment.compose import CONFIGS
from sibp.report.blocks import Table
from sibp.runs.errors import UserError

CASE = Case("784-500-10", 100)


def tables(sections):
    return {block.name: block for section in sections for block in section.blocks if isinstance(block, Table)}


def record(**times):
    samples = {name.replace("_", ":"): [value, value * 1.1, value] for name, value in times.items()}
    peaks = {"sgd": {"peak_bytes": 100, "first_step_seconds": 0.5}, "exact": {"peak_bytes": 210}}
    slowed = {name: [7 * value for value in values] for name, values in samples.items()}
    return {
        "cases": [
            {
                "net": CASE.net,
                "batch": CASE.batch,
                "activation": "",
                "device": "cpu",
                "dtype": "float32",
                "seconds_per_step": slowed,
                "processor_seconds_per_step": samples,
                "memory": peaks,
            }
        ]
    }


def rows_of(made):
    """The table of a record's only network, by method and column; the last of equally named columns."""
    table = tables(step.sections(made))["step"]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def verdicts_of(made, method):
    table = tables(step.sections(made))["step"]
    row = next(row for row in table.rows if row[0] == method)
    place = table.columns.index("target")
    return row[place : place + 2]


def test_targets_are_called_met_or_missed():
    made = record(sgd=1.0, exact=1.34, cg_3=1.7, cg_5=9.0)
    assert verdicts_of(made, "exact") == ["≤ 1.35", "met"]
    assert verdicts_of(made, "cg:3") == ["≤ 1.65", "missed"]
    assert verdicts_of(made, "cg:5") == [None, None]
    rows = rows_of(made)
    assert rows["exact"]["processor ms"].median == pytest.approx(1340)
    assert rows["exact"]["ms a step"].median == pytest.approx(7 * 1340)
    assert rows["exact"]["≤ 1.5"] == "missed"  # 210 bytes, SGD's 100
    assert rows["sgd"]["first step, ms"] == 500.0


def test_verdicts_are_on_processor_time():
    """Another process takes the machine for a while: by wall-clock time, exact looks three times as slow as it is."""
    made = record(sgd=1.0, exact=1.3)
    made["cases"][0]["seconds_per_step"]["exact"] = [27.3] * 3
    assert verdicts_of(made, "exact") == ["≤ 1.35", "met"]
    assert rows_of(made)["exact"]["x SGD"].median == pytest.approx(27.3 / 7)
    assert rows_of(made)["exact"]["x SGD's"] == pytest.approx(2.1)  # memory
    made["cases"][0]["processor_seconds_per_step"]["exact"] = [1.6] * 3
    assert verdicts_of(made, "exact") == ["≤ 1.35", "missed"]


@pytest.mark.parametrize(
    "changed",
    [{"net": "20-10-3"}, {"batch": 99}, {"activation": "tanh"}, {"dtype": "float64"}, {"device": "cuda"}],
    ids=str,
)
def test_nets_without_targets_get_no_verdict(changed):
    made = record(sgd=1.0, exact=9.0, cg_5=9.0, paper=1.0, proxbp=1.0)
    made["cases"][0] |= changed
    assert verdicts_of(made, "exact") == [None, None]
    assert "pairs" not in tables(step.sections(made))
    (said, *_) = step.sections(made)[0].blocks
    assert "Targets" not in said.text
    assert not any(mark for marks in step.sections(made)[-1].blocks[0].marks.values() for mark in marks)


def test_a_record_without_processor_time_is_shown_without_verdicts():
    made = record(sgd=1.0, exact=1.2)
    del made["cases"][0]["processor_seconds_per_step"]
    assert verdicts_of(made, "exact") == [None, None]
    assert rows_of(made)["exact"]["ms a step"].median == pytest.approx(7 * 1200)


def test_the_headline_gives_the_range_over_all_nets():
    made = record(sgd=1.0, exact=1.1, paper=90.0)
    other = record(sgd=2.0, exact=3.0, cg_3=4.0)["cases"][0] | {"net": "8-6-3"}
    made |= {"cases": [*made["cases"], other], "machine": {"device": "cpu", "threads": 2}}
    said = step.headline(made)
    assert "exact 1.1 to 1.5, cg:3 2 (2 nets, 2 threads" in said
    assert "paper" not in said  # a port
    made |= {"cases": [other | {"device": "cuda"}], "machine": {"device": "H100", "threads": 2}}
    made["cases"][0]["seconds_per_step"]["exact"] = [42.0] * 3
    assert "exact 3," in step.headline(made)  # by the clock: 42 / 14
    assert "(8-6-3, batch 100, H100" in step.headline(made)


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
    times = {"sgd": [1.0] * 5, "exact": [spread[0]] * 2 + [spread[1]] + [spread[2]] * 2}
    made["cases"][0] |= {"seconds_per_step": times, "processor_seconds_per_step": times}
    assert verdicts_of(made, "exact")[1] == word


def test_missing_memory_measurements_are_reported():
    made = record(sgd=1.0, exact=1.2)
    made["cases"][0]["memory"]["exact"] = {"failed": "MemoryError"}
    row = rows_of(made)["exact"]
    assert [row[key] for key in ("peak memory, MB", "x SGD's", "≤ 1.5")] == ["MemoryError", None, None]


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


def counted(made, **seconds):
    """The record's only case with counts: method -> seconds of its roof and of its pieces."""
    (case,) = made["cases"]
    names = {name: dict(zip(("roof_seconds", "pieces_seconds"), pair, strict=True)) for name, pair in seconds.items()}
    case["counted"] = {name: {"operations": 1.0, "bytes": 1.0, **found} for name, found in names.items()}
    return case | {"size_bytes": 1.0, "bandwidth": 1.0}


def rows_of_the_roofline(case):
    (table,) = tables(roofline.sections({"product_rate": 1e9, "dtype": "float32", "cases": [case]})).values()
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_floor_adds_what_a_method_does_beyond_sgd():
    made = record(sgd=4.0, exact=8.0)
    case = counted(made, sgd=(1, 2), exact=(3, 8))
    assert floor(case, "exact") == pytest.approx(1 + (3 - 1) / 4)
    assert floor(case, "exact", "pieces_seconds") == pytest.approx(1 + (8 - 2) / 4)
    assert floor(case, "cg:3") is None
    for row in (rows_of_the_roofline(case)["exact"], rows_of(made)["exact"]):
        assert [row["floor"], row["pieces"]] == pytest.approx([1.5, 2.5])
    assert verdicts_of(made, "exact") == ["≤ 1.35", "missed, below the floor"]
    assert rows_of_the_roofline(case)["exact"][""] == "missed, below the floor"


def test_the_floor_is_by_the_clock_that_judges():
    """Processor time on a CPU; for other devices it is meaningless."""
    case = counted(record(sgd=4.0, exact=8.0), sgd=(1, 2), exact=(3, 8))
    assert floor(case | {"device": "cuda"}, "exact") == pytest.approx(1 + (3 - 1) / 28)


def test_a_target_between_the_floor_and_the_pieces_is_reported():
    made = record(sgd=4.0, exact=8.0)
    counted(made, sgd=(1, 1), exact=(2, 5))
    assert verdicts_of(made, "exact") == ["≤ 1.35", "missed, below the pieces"]
    counted(made, sgd=(1, 1), exact=(2, 2))
    assert verdicts_of(made, "exact") == ["≤ 1.35", "missed"]


def test_a_met_target_has_no_comment():
    made = record(sgd=4.0, exact=5.0)
    counted(made, sgd=(1, 1), exact=(9, 9))
    assert verdicts_of(made, "exact") == ["≤ 1.35", "met"]


def test_calls_raise_the_floor_by_their_time_beyond_sgds():
    case = counted(record(sgd=4.0, exact=8.0), sgd=(1, 1), exact=(1, 1))
    assert roofline.with_calls(case, "exact") is None
    case["calls"] = {"sgd": [1.0, 2.0, 9.0], "exact": [5.0, 6.0, 7.0]}
    assert floor(case, "exact") == 1
    assert roofline.with_calls(case, "exact") == pytest.approx(1 + (6 - 2) / 4)
    assert rows_of_the_roofline(case)["exact"][""] == "missed, below the floor with calls"


def test_cases():
    assert choose_cases([], []) == list(TARGETS)
    assert choose_cases(["3072-2000-500-10"], []) == [Case("3072-2000-500-10", 100), Case("3072-2000-500-10", 500)]
    assert choose_cases(["5-4"], []) == [Case("5-4", 100)]
    assert choose_cases(["5-4", "784-500-10"], [7]) == [Case("5-4", 7), Case("784-500-10", 7)]
    assert choose_cases(["transformer_block", "resnet8"], []) == [Case("transformer_block", 16), Case("resnet8", 128)]
    with pytest.raises(UserError, match="--net 5-"):
        choose_cases(["5-"], [])


def test_each_activation_is_a_separate_case():
    assert choose_cases(["5-4"], [], ["tanh", "relu"]) == [Case("5-4", 100, "tanh"), Case("5-4", 100)]
    assert choose_cases(["784-500-500-10"], []) == [Case("784-500-500-10", 100)]  # the default activation is ReLU
    assert choose_cases(["transformer_block"], [3], ["gelu"]) == [Case("transformer_block", 3)]
    asked = choose_cases([], [], ["silu"])
    assert Case("784-500-500-10", 100, "silu") in asked
    assert {case.activation for case in asked} == {"silu"}
    assert not any(case.net in ("resnet8", CONVNET) for case in asked)  # tested only with their own activation


@pytest.mark.parametrize(("net", "kind"), [("6-5-4-3", nn.Tanh), ("transformer_block", nn.SiLU)])
def test_a_net_has_the_requested_activation(net, kind):
    model = Case(net, 2, {nn.Tanh: "tanh", nn.SiLU: "silu"}[kind]).model()
    found = [type(module) for module in model.modules() if type(module).__module__.endswith("activation")]
    assert set(found) == {kind}


@pytest.mark.parametrize("net", list(NAMED))
def test_named_nets_give_one_output_per_class(net):
    case = Case(net, 1)
    with torch.no_grad():
        assert case.model()(torch.zeros(1, *case.shape)).shape == (1, case.classes)


def test_the_transformer_block_is_the_one_of_the_table():
    case = Case("transformer_block", 16)
    assert case.shape == (64, 256)  # 16 x 64 tokens of width 256
    layers = layers_of(case.model(), case.shape, 16)
    assert [(layer.rows, layer.inputs, layer.neurons) for layer in layers] == [
        *[(1024, 256, 256)] * 4, (1024, 256, 1024), (1024, 1024, 256), (16, 256, 10),
    ]  # fmt: skip
    assert [layer.activation for layer in layers] == [""] * 4 + ["gelu"] + [""] * 2
    assert not any(layer.first for layer in layers)  # a norm with parameters precedes each
    block = case.model()[0]
    x = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0))
    attention = nn.MultiheadAttention(256, 4, batch_first=True)
    own = block.attention
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in (own.query, own.key, own.value)]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in (own.query, own.key, own.value)]))
        attention.out_proj.load_state_dict(own.out.state_dict())
        torch.testing.assert_close(own(x), attention(x, x, x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", PEERS)
def test_peers_train(method):
    worker = Worker(Case("12-9-8-3", 6), method, pool=2)
    before = [p.clone() for p in worker.model.parameters()]
    for _ in range(3):
        worker.step()
    after = list(worker.model.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_periods_are_those_of_the_peers_settings():
    periods = {name: Worker(Case("12-9-8-3", 6), name, pool=1).period for name in ("sgd", "exact", *PEERS)}
    settings = {"sgd": 1, "exact": 1, "adam": 1, "muon": 1}
    for name, key in (("kfac", "inverse_every"), ("foof", "inverse_every"), ("soap", "every")):
        settings[name] = yaml.safe_load((CONFIGS / "optimizer" / f"{name}.yaml").read_text())[key]
    assert periods == settings
    assert min(settings["kfac"], settings["foof"], settings["soap"]) > 1


def test_every_stretch_starts_from_the_same_weights_and_batches():
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


def test_peak_memory_is_the_largest_sum_of_live_tensors():
    def work():
        a = torch.zeros(1000, dtype=torch.float64)
        b = torch.zeros(3000, dtype=torch.float64)
        del a
        c = torch.zeros(500, dtype=torch.float64)
        del b
        d = torch.zeros(2000, dtype=torch.float64)
        return c, d

    assert memory.peak_bytes(work, "cpu") == 8 * 4000


@pytest.mark.slow
def test_memory_of_training_in_a_separate_process():
    case = Case("100-80-10", 20)
    found = memory.measure(case, "exact", "cpu", "float32", 1)
    weights = sum(p.numel() for p in case.model().parameters()) * 4
    assert 2 * weights < found["peak_bytes"] < 20 * weights  # at least the weights and their displacements
    assert found["first_step_seconds"] > 0


def test_a_failed_process_gives_its_reason(monkeypatch):
    ended = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nMemoryError\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: ended)
    assert memory.measure(CASE, "sgd", "cpu", "float32", 1) == {"failed": "MemoryError"}
