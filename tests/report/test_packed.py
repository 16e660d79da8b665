"""Packed runs: reading a file restores the folders; it contains nothing about the machine."""

import json

import numpy as np
import pytest
from fake_runs import SGD, SIBP, write_run

from sibp.runs.collect import collect
from sibp.runs.packed import LAYERS, PACKED, ROWS, common, joined, less, pack, read_packed
from sibp.runs.values import BrokenError


def packed(folder, target):
    target.mkdir()
    path = target / "runs.jsonl"
    path.write_text(pack(collect([folder]).runs))
    return path


def eight_digits(value):
    """The value with its floats as packing keeps them."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.8g}"))


def test_packed_runs_are_the_runs_of_the_folders(tmp_path):
    write_run(tmp_path / "runs" / "a", SGD, 0, summary={"test_acc": 0.9})
    write_run(tmp_path / "runs" / "b", SIBP, 1, losses=(2.0, 1.5, None), status="diverged", batch_size=7, layers=["0"])
    path = packed(tmp_path / "runs", tmp_path / "kept")
    before, after = collect([tmp_path / "runs"]).runs, collect([tmp_path / "kept"]).runs
    assert [run.path for run in after] == [path.parent / "a", path.parent / "b"]
    for one, other in zip(before, after, strict=True):
        one.summary["environment"].pop("host")
        places = {"data_root": "data", "run_root": "runs"}
        assert (other.config, other.summary, other.status) == (
            one.config | places,
            eight_digits(one.summary),
            one.status,
        )
        for key, column in one.columns.items():
            np.testing.assert_array_equal(other.columns[key], eight_digits(column.tolist()))
    assert after[0].solver == {}
    steps, values = after[1].solver["0"]["decrease"]
    assert (steps.tolist(), values.tolist()) == ([10, 20], [0.5, 0.3333])


def test_no_path_of_the_machine_is_kept(tmp_path):
    environment = {"host": "mill", "command": "train.py data_root=/mill/data", "cpus": 2}
    about = {"environment": environment, "earlier_environments": [{**environment, "until_step": 8}]}
    write_run(tmp_path / "runs" / "a", summary=about, data_root="/mill/data", run_root="/mill/runs")
    text = packed(tmp_path / "runs", tmp_path / "kept").read_text()
    assert "mill" not in text
    (run,) = collect([tmp_path / "kept"]).runs
    assert run.summary["environment"] == {"cpus": 2}
    assert run.summary["earlier_environments"] == [{"cpus": 2, "until_step": 8}]


def test_long_runs_are_thinned_and_keep_their_ends(tmp_path):
    losses = [(2000 - i) / 1000 for i in range(1001)]
    write_run(tmp_path / "runs" / "a", losses=losses)
    (run,) = read_packed(packed(tmp_path / "runs", tmp_path / "kept"))
    assert len(run.columns["step"]) == ROWS
    assert run.columns["train_loss"][[0, -1]].tolist() == [losses[0], losses[-1]]
    assert run.columns["train_loss"].tolist() == [losses[int(step) // 10] for step in run.columns["step"]]


def test_measured_values_have_eight_digits_and_whole_numbers_all_of_theirs(tmp_path):
    summary = {"seconds": {"train": 12.3456789012}, "parameters": 1234567891}
    write_run(tmp_path / "runs" / "a", losses=(2.123456789, 1234567891.0), summary=summary)
    path = packed(tmp_path / "runs", tmp_path / "kept")
    (run,) = read_packed(path)
    assert run.columns["train_loss"].tolist() == [2.1234568, 1234567891.0]
    assert run.summary["seconds"] == {"train": 12.345679}
    assert run.summary["parameters"] == 1234567891
    assert pack(read_packed(path)) == path.read_text()


def test_statistics_of_deep_nets_are_those_of_some_layers_with_both_ends(tmp_path):
    write_run(tmp_path / "runs" / "a", SIBP, layers=[str(2 * i) for i in range(31)])
    (run,) = read_packed(packed(tmp_path / "runs", tmp_path / "kept"))
    assert len(run.solver) == LAYERS
    assert {"0", "60"} <= run.solver.keys()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"x": 1}, {"x": 1.0}),
        ({"x": True}, {"x": 1}),
        ({"x": {"y": [1, 2]}}, {"x": {"y": [1, 2], "z": None}}),
        ({"x": {"y": 1}}, {"x": 3}),
        ({"x": {}}, {}),
        ({"x": {"y": {}}}, {"x": {"y": {"z": 1}}}),
    ],
)
def test_shared_and_remaining_entries_make_the_whole(a, b):
    shared = common(a, b)
    for whole in (a, b):
        assert json.dumps(joined(shared, less(whole, shared)), sort_keys=True) == json.dumps(whole, sort_keys=True)


DAMAGES = {
    "is damaged": lambda lines: [lines[0], lines[1][:-5]],
    "names no run": lambda lines: [lines[0], lines[1].replace('"run":"a"', '"run":"../a"')],
    "rows are not lists": lambda lines: [lines[0].replace('"seconds"', '"minutes"'), lines[1]],
    "names no optimizer": lambda lines: [lines[0].replace('"optimizer"', '"optimiser"'), lines[1]],
    "is not an object": lambda lines: [lines[0], "[]"],
}


@pytest.mark.parametrize("content", ["", "{}\n"])
def test_a_file_without_runs_is_broken(tmp_path, content):
    (tmp_path / PACKED).write_text(content)
    (broken,) = collect([tmp_path]).broken
    assert broken.reason == "it holds no runs"


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_line_is_named(tmp_path, reason):
    write_run(tmp_path / "runs" / "a")
    path = packed(tmp_path / "runs", tmp_path / "kept")
    path.write_text("\n".join(DAMAGES[reason](path.read_text().splitlines())))
    with pytest.raises(BrokenError, match=f"line 2.*{reason}"):
        read_packed(path)
    (broken,) = collect([tmp_path / "kept"]).broken
    assert reason in broken.reason
