"""Damaged run folders are recognised, with the reason, and do not stop the report."""

import json
import math
import os
import re
from pathlib import Path

import pytest
from fake_runs import SGD, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sibp.analysis.comparison import compare
from sibp.report.__main__ import main as report
from sibp.report.sections import build
from sibp.report.web_page import page
from sibp.runs import collect as collecting
from sibp.runs.collect import collect
from sibp.runs.reading import read_run
from sibp.runs.values import BrokenError, UsageError, plain, shown
from sibp.runs.yaml_file import parse_yaml, yaml_text


def line(**changes: object) -> str:
    row = {"step": 30, "seconds": 0.3, "train_loss": 0.4, "train_acc": 0.8, "val_loss": 0.4, "val_acc": 0.8}
    return json.dumps({**row, **changes}) + "\n"


BAD_LINES = {
    "not an object": ("[1, 2]\n", "not an object"),
    "no JSON in the middle": ("{nonsense}\n" + line(), "damaged at line 4"),
    "binary in the middle": ("\x00\x01\n" + line(), "damaged at line 4"),
    "empty line in the middle": ("\n" + line(), "damaged at line 4"),
    "loss is a word": (line(train_loss="low"), "train_loss is low, not a number"),
    "loss is true": (line(train_loss=True), "train_loss is true, not a number"),
    "loss is a list": (line(val_loss=[1]), "val_loss is [1], not a number"),
    "accuracy in percent": (line(val_acc=97.0), "val_acc is 97, not an accuracy"),
    "step is missing": (line(step=None), "step is null, not a whole number"),
    "step is a fraction": (line(step=30.5), "step is 30.5"),
    "step is beyond counting": (line(step=1e300), "not a whole number"),
    "negative step": (line(step=-1), "step is -1"),
    "seconds missing": (line(seconds=None), "seconds is null"),
    "seconds infinite": (line(seconds=math.inf), "not a number of 0 or more"),
    "steps go back": (line(step=10), "go back"),
    "seconds go back": (line(seconds=0.0), "go back"),
    "a number of a million digits": ('{"step": ' + "9" * 1_000_000 + "}\n" + line(), "damaged at line 4"),
    "nested without end": ("[" * 100_000 + "\n" + line(), "damaged at line 4"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_damaged_metrics_are_broken_with_file_line_and_reason(tmp_path, case):
    text, reason = BAD_LINES[case]
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)
    with pytest.raises(BrokenError, match=r"^metrics\.jsonl") as caught:
        read_run(folder)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def summary(**changes: object) -> bytes:
    return json.dumps({"status": "completed", "steps": 20, **changes}).encode()


BAD_FILES = {
    "config missing": ("config.yaml", None, "config.yaml is missing"),
    "config empty": ("config.yaml", b"", "config.yaml contains no settings"),
    "config binary": ("config.yaml", b"\xff\xfe\x00", "config.yaml is not text"),
    "config no yaml": ("config.yaml", b"a: [1, 2", "config.yaml is not valid YAML"),
    "config builds objects": (
        "config.yaml",
        b"a: !!python/object/apply:os.system ['true']",
        "config.yaml is not valid YAML",
    ),
    "config no optimizer": ("config.yaml", b"seed: 0", "names no optimizer"),
    "config optimizer is a word": ("config.yaml", b"{optimizer: sgd, seed: 0}", "names no optimizer"),
    "config seed is a word": ("config.yaml", b"{optimizer: {name: sgd}, seed: one}", "seed is one"),
    "config seed missing": ("config.yaml", b"{optimizer: {name: sgd}}", "seed is null"),
    "config refers to itself": ("config.yaml", b"&a {optimizer: *a, seed: 0}", "too large or too deep"),
    "config too large": ("config.yaml", b"a: 1\n" * 30_000, "too large"),
    "summary binary": ("summary.json", b"\x80\x04\x95", "summary.json is not text"),
    "summary cut off": ("summary.json", b'{"status": "comp', "summary.json is damaged"),
    "summary a list": ("summary.json", b"[]", "summary.json is not a mapping"),
    "summary without status": ("summary.json", b"{}", "status is null"),
    "summary with a new status": ("summary.json", b'{"status": "great"}', "status is great"),
    "test accuracy in percent": ("summary.json", summary(test_acc=97.5), "test_acc is 97.5, not an accuracy"),
    "test accuracy below 0": ("summary.json", summary(test_acc=-1), "summary.json: test_acc is -1, not an accuracy"),
    "test loss is a word": ("summary.json", summary(test_loss="low"), "test_loss is low, not a number"),
    "metrics binary": ("metrics.jsonl", b"\x80\x04\x95\n", "metrics.jsonl is not text"),
    "metrics missing": ("metrics.jsonl", None, "metrics.jsonl is missing or empty"),
    "metrics empty": ("metrics.jsonl", b"", "metrics.jsonl is missing or empty"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_files_are_broken_with_the_reason(tmp_path, case):
    name, content, reason = BAD_FILES[case]
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    found = collect([tmp_path])
    assert not found.runs
    assert [broken.path for broken in found.broken] == [folder]
    assert reason in found.broken[0].reason


def test_ten_aliases_of_ten_aliases_do_not_expand_exponentially(tmp_path):
    folder = write_run(tmp_path / "run")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (folder / "config.yaml").write_text(bomb)
    with pytest.raises(BrokenError, match="too large or too deep"):
        read_run(folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl"])
def test_a_folder_or_device_in_place_of_a_file_is_broken_and_does_not_hang(tmp_path, name, make):
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    make(folder / name)
    (broken,) = collect([tmp_path]).broken
    assert broken.reason.startswith(name)


def test_merges_of_merges_do_not_expand_exponentially(tmp_path):
    folder = write_run(tmp_path / "run")
    bomb = "a0: &a0 {x: 1}\n"
    bomb += "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
    (folder / "config.yaml").write_text(bomb)
    with pytest.raises(BrokenError, match="merges too much"):
        read_run(folder)


ENDLESS = ("/dev/zero", "/dev/urandom", "/proc/kmsg")


@pytest.mark.parametrize("device", ENDLESS)
@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl", "runs.jsonl"])
def test_a_device_in_place_of_a_file_is_broken_and_reading_it_ends(tmp_path, name, device):
    folder = write_run(tmp_path / "run")
    good = write_run(tmp_path / "good")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(device)
    found = collect([tmp_path])
    assert good in [run.path for run in found.runs]
    (broken,) = found.broken
    assert name in f"{broken.path.name} {broken.reason}"


def test_an_empty_pipe_is_broken_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "runs.jsonl")
    (broken,) = collect([tmp_path]).broken
    assert "is not a file" in broken.reason


@pytest.mark.parametrize("key", ["seed", "batch_size", "epochs"])
@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "9" * 5000, "-0x" + "f" * 60])
def test_a_number_of_thousands_of_digits_is_broken_and_the_others_reported(four_runs, key, number):
    text = (four_runs / "odd" / "config.yaml").read_text()
    (four_runs / "odd" / "config.yaml").write_text(re.sub(f"^{key}: .*$", f"{key}: {number}", text, flags=re.MULTILINE))
    found = collect([four_runs])
    assert (len(found.runs), len(found.broken)) == (3, 1)
    assert "</html>" in whole_report(four_runs)


def test_a_name_of_150_emoji_is_shown(four_runs, tmp_path_factory):
    emoji = "\U0001f600" * 150
    out = tmp_path_factory.mktemp("out")
    text = (four_runs / "odd" / "config.yaml").read_text()
    settings = parse_yaml(text)
    for part in ("dataset", "model", "optimizer"):
        settings[part]["name"] = emoji
    (four_runs / "odd" / "config.yaml").write_text(yaml_text(settings))
    words = ["--out", str(out / "report.html"), "--format"]
    assert report([str(four_runs), *words, "html,md,csv"]) == 0
    assert report([str(four_runs / "odd"), *words, "png"]) == 0
    (four_runs / "odd" / "config.yaml").write_text(text)
    (four_runs / "packed").mkdir()
    line = {"run": emoji, "config": settings, "summary": {}, "rows": {}}
    (four_runs / "packed" / "runs.jsonl").write_text(json.dumps({}) + "\n" + json.dumps(line) + "\n")
    (broken,) = collect([four_runs]).broken
    assert "names no run" in broken.reason
    assert report([str(four_runs), *words, "html,md"]) == 0


def test_an_unexpected_folder_does_not_stop_the_report(four_runs, monkeypatch):
    original = collecting.read_run

    def read(folder: Path):
        if folder.name == "odd":
            raise MemoryError("a kind of damage that is not known yet")
        return original(folder)

    monkeypatch.setattr(collecting, "read_run", read)
    (broken,) = collect([four_runs]).broken
    assert broken.reason == "it cannot be read (MemoryError: a kind of damage that is not known yet)"
    assert "</html>" in whole_report(four_runs)


def test_a_row_of_the_same_step_as_the_one_before_is_broken(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(step=20))  # as the row before
    with pytest.raises(BrokenError, match="line 4: steps or seconds go back"):
        read_run(folder)


def test_last_line_cut_off_is_dropped_with_a_note(tmp_path):
    folder = write_run(tmp_path / "run", status=None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train_lo')
    run = read_run(folder)
    assert run.columns["step"].tolist() == [0, 10, 20]
    assert run.status == "unfinished"
    assert run.notes == ("metrics.jsonl: the last line (4) is cut off, and was dropped",)


def test_completed_run_that_lost_its_last_row_gets_it_from_the_summary(tmp_path):
    folder = write_run(tmp_path / "run", losses=(2.0, 1.0, 0.5))
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-30])
    run = read_run(folder)
    assert run.status == "completed"
    assert run.columns["train_loss"].tolist() == [2.0, 1.0, 0.5]
    assert "the last row was taken from summary.json" in run.notes


def test_completed_run_without_its_last_row_is_unfinished(tmp_path):
    folder = write_run(tmp_path / "run", summary={"final": None})
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    run = read_run(folder)
    assert run.status == "unfinished"
    assert "ends at step 10 of 20" in run.notes[0]


def test_non_finite_numbers_are_gaps(tmp_path):
    folder = write_run(tmp_path / "run", losses=(2.0, None, 1e308))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "seconds": 1, "train_loss": NaN, "val_loss": 1e999}\n')
    run = read_run(folder)
    assert [math.isnan(value) for value in run.columns["train_loss"]] == [False, True, False, True]
    assert math.isnan(run.columns["val_loss"][3])


def test_solver_entries_of_any_shape_are_taken_where_they_are_numbers(tmp_path):
    folder = write_run(tmp_path / "run", layers=("0",))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(solver={"0": {"rounds": 3, "decrease": "much", "x": None}, "1": 7, "2": []}))
    run = read_run(folder)
    assert run.solver["0"]["iterations"][1].tolist() == [5, 5, 3]  # called rounds in older runs
    assert len(run.solver["0"]["decrease"][1]) == 2
    assert set(run.solver) == {"0"}


def test_run_killed_at_its_start_counts_and_settings_of_a_project_do_not(tmp_path):
    folder = write_run(tmp_path / "run", status=None)
    (folder / "metrics.jsonl").unlink()
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "config.yaml").write_text("defaults: [_self_]\nrun_root: runs\n")
    (tmp_path / ".hidden").mkdir()
    write_run(tmp_path / ".hidden" / "run")
    found = collect([tmp_path])
    assert [(run.path, run.status) for run in found.runs] == [(folder, "unfinished")]
    assert not found.broken


def test_run_given_twice_counts_once(tmp_path):
    write_run(tmp_path / "a" / "run")
    assert len(collect([tmp_path, tmp_path / "a", tmp_path / "a" / "run"]).runs) == 1


def test_links_to_folders_are_not_followed(tmp_path):
    folder = write_run(tmp_path / "runs" / "run")
    (folder / "again").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "other").symlink_to(write_run(tmp_path / "elsewhere"))
    assert [run.path for run in collect([tmp_path / "runs"]).runs] == [folder]


def test_a_link_to_itself_is_broken_and_the_others_are_read(tmp_path):
    write_run(tmp_path / "a")
    for path in (tmp_path / "b" / "summary.json", tmp_path / "b" / "config.yaml", tmp_path / "runs.jsonl"):
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(path.name)
    collection = collect([tmp_path])
    assert [run.path.name for run in collection.runs] == ["a"]
    assert [each.path.name for each in collection.broken] == ["b", "runs.jsonl"]
    assert "runs.jsonl" in page(build(collection, compare(collection.runs), "command"), tmp_path)


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "does not exist"), ("file", "is not a folder"), ("", "no runs")]
)
def test_nothing_to_report_is_one_sentence(tmp_path, name, words):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words) as caught:
        collect([tmp_path / name])
    assert len(str(caught.value).splitlines()) == 1


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["status", "steps", "final", "seconds", "reason", "environment", "test_acc", "initial_train_loss"]
)
SETTINGS = st.sampled_from(["optimizer", "dataset", "model", "batch_size", "epochs", "seed", "target_val_acc", "extra"])
COLUMNS = st.sampled_from(["step", "seconds", "train_loss", "val_loss", "val_acc", "solver"])


def whole_report(root: Path) -> str:
    collection = collect([root])
    assert len(collection.runs) + len(collection.broken) == 4
    return page(build(collection, compare(collection.runs, None, 0.4), "command"), root)


@pytest.fixture
def four_runs(tmp_path: Path) -> Path:
    for seed in range(3):
        write_run(tmp_path / f"good{seed}", seed=seed, layers=("0",))
    write_run(tmp_path / "odd", {**SGD, "lr": 0.5}, layers=("0",))
    return tmp_path


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@FUZZ
@given(
    st.dictionaries(KEYS, JUNK, max_size=4), st.dictionaries(SETTINGS, JUNK, max_size=4), st.dictionaries(COLUMNS, JUNK)
)
def test_arbitrary_values_in_the_files_still_give_a_report(four_runs, summary, config, row):
    files = [four_runs / "odd" / name for name in ("summary.json", "config.yaml", "metrics.jsonl")]
    kept = [file.read_text() for file in files]
    good = json.loads(kept[0])
    files[0].write_text(json.dumps({**good, **summary}))
    files[1].write_text(json.dumps({**parse_yaml(kept[1]), **config}))
    files[2].write_text(kept[2] + json.dumps({"step": 30, "seconds": 1.0, **row}) + "\n")
    try:
        assert "</html>" in whole_report(four_runs)
    finally:
        for file, text in zip(files, kept, strict=True):
            file.write_text(text)


@FUZZ
@given(
    st.sampled_from(["summary.json", "config.yaml", "metrics.jsonl"]),
    st.integers(0, 2000),
    st.binary(max_size=12),
    st.integers(0, 40),
)
def test_arbitrary_bytes_in_the_files_still_give_a_report(four_runs, name, place, noise, cut):
    file = four_runs / "odd" / name
    kept = file.read_bytes()
    file.write_bytes(kept[:place] + noise + kept[place + cut :])
    try:
        assert "</html>" in whole_report(four_runs)
    finally:
        file.write_bytes(kept)


def test_shown_values_are_short_and_printable():
    assert shown("a\x00b\nc\x1b[31m") == "a\ufffdb c\ufffd[31m"
    assert len(shown("x" * 10_000)) == 200
    assert shown({"a": 1}) == '{"a": 1}'
    with pytest.raises(BrokenError):
        plain(list(range(20_000)))
