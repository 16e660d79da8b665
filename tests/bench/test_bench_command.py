"""The command end to end: its files, its output and its error messages."""

import json
import math

import pytest
import torch
import yaml

from sibp.bench import memory, modes, step
from sibp.bench.__main__ import main
from sibp.bench.nets import Case
from sibp.bench.record import Usage
from sibp.bench.timing import MIN_ROUNDS
from sibp.bench.workers import Worker

HEAD = {"command", "made_by", "others", "date", "machine"}
MACHINE = {"processor", "load", "system", "cpus", "threads", "device", "kernels", "versions", "git_commit", "git_dirty"}


def run(folder, *words):
    assert main([*words, "--out", str(folder)]) == 0
    (path,) = folder.glob(f"{words[0]}*.json")
    record = json.loads(path.read_text())
    assert record.keys() >= HEAD
    assert record["machine"].keys() == MACHINE
    assert record["made_by"].startswith(f"python -m sibp.bench {words[0]} ")
    pictures = list(folder.glob(f"{path.stem}-*.png"))
    assert pictures
    readme = (folder / "README.md").read_text()
    assert all(f"({picture.name})" in readme for picture in pictures)
    return record


def assert_samples(samples, *methods):
    assert list(samples) == list(methods)
    assert all(len(values) == MIN_ROUNDS for values in samples.values())
    assert all(math.isfinite(value) and value > 0 for values in samples.values() for value in values)


SMALL = ("--seconds", "0", "--threads", "1")


def test_step(tmp_path, quick, capsys):
    methods = ("exact", "cg:2", "proxbp", "proxprop", "paper")
    words = ("--net", "8-6-3", "--batch", "5", "7", "--methods", *methods)
    record = run(tmp_path, "step", *words, *SMALL, "--no-memory", "--dtype", "float64")
    assert [(case["net"], case["batch"]) for case in record["cases"]] == [("8-6-3", 5), ("8-6-3", 7)]
    for case in record["cases"]:
        assert_samples(case["seconds_per_step"], "sgd", *methods)
        assert_samples(case["processor_seconds_per_step"], "sgd", *methods)
        assert case["counted"].keys() == {"sgd", "exact", "cg:2", "proxbp"}  # there are no formulas for the others
        assert case["counted"]["exact"]["pieces_seconds"] > 0
    assert (record["dtype"], record["machine"]["threads"]) == ("float64", 1)
    said = capsys.readouterr().out
    assert "8-6-3, batch 7" in said
    assert "proxprop / proxbp" not in said  # a target for other networks
    assert "# Benchmark\n\n![" in (tmp_path / "README.md").read_text()  # a picture first
    first = (tmp_path / "README.md").read_text().split("\n\n")
    assert "(step-cpu-1thread-ratios.png)" in first[1]
    assert "exact" in first[2]
    assert first[3].startswith("## ")


def test_one_record_per_number_of_threads(tmp_path, quick):
    words = ["step", "--net", "4-3-2", "--batch", "5", "--methods", "exact", "--seconds", "0", "--no-memory"]
    assert main([*words, "--threads", "1", "2", "--out", str(tmp_path)]) == 0
    threads = {path.name: json.loads(path.read_text())["machine"]["threads"] for path in tmp_path.glob("*.json")}
    assert threads == {"step-cpu-1thread.json": 1, "step-cpu-2threads.json": 2}


def test_activations_and_peers_on_the_command_line(tmp_path, quick, capsys):
    words = ("--net", "8-6-5-3", "--batch", "5", "--activation", "tanh", "gelu", "--methods", "cg:2", "adam")
    record = run(tmp_path, "step", *words, *SMALL, "--no-memory")
    assert [case["activation"] for case in record["cases"]] == ["tanh", "gelu"]
    assert_samples(record["cases"][0]["seconds_per_step"], "sgd", "cg:2", "adam")
    assert "8-6-5-3 gelu, batch 5" in capsys.readouterr().out


def test_step_measures_memory_of_every_method_except_the_slow_ones(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(
        memory, "measure", lambda case, *given: {"peak_bytes": 1, "given": [case.net, case.activation, *given]}
    )
    words = ("--net", "4-3-2", "--batch", "5", "--methods", "exact", "paper", "proxprop")
    record = run(tmp_path, "step", *words, *SMALL)
    taken = record["cases"][0]["memory"]
    assert list(taken) == ["sgd", "exact"]
    assert taken["exact"]["given"] == ["4-3-2", "", "exact", "cpu", "float32", 1]


def test_a_compiled_step_is_listed_beside_the_eager_one(tmp_path, quick, monkeypatch):
    taken = []
    monkeypatch.setattr(modes, "compiled", lambda step, x, y: lambda x, y: taken.append(1) or step(x, y))
    words = ("--net", "8-6-3", "--batch", "5", "--methods", "exact", "exact+compile", "sgd+compile")
    (case,) = run(tmp_path, "step", *words, *SMALL, "--no-memory")["cases"]
    assert_samples(case["seconds_per_step"], "sgd", "exact", "exact+compile", "sgd+compile")
    assert case["counted"].keys() == {"sgd", "exact"}
    assert taken
    assert case["failed"] == {}


def test_a_step_that_cannot_be_compiled_does_not_affect_the_others(tmp_path, quick, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no compiler here\nand a trace")

    monkeypatch.setattr(modes, "compiled", fails)
    words = ("--net", "8-6-3", "--batch", "5", "--methods", "exact", "exact+compile")
    (case,) = run(tmp_path, "step", *words, *SMALL, "--no-memory")["cases"]
    assert_samples(case["seconds_per_step"], "sgd", "exact")
    assert case["failed"] == {"exact+compile": "RuntimeError: no compiler here"}
    assert "exact+compile failed: RuntimeError: no compiler here" in capsys.readouterr().out


def test_recording_a_graph_restores_the_weights(monkeypatch):
    """A replayed graph starts from the same weights as every other method."""

    def recorded(step, x, y):
        step(x, y)  # advances the state, as the warm-up does
        return step

    monkeypatch.setattr(modes, "graph", recorded)
    worker, plain = Worker(Case("8-6-3", 5), "exact+graph", pool=2), Worker(Case("8-6-3", 5), "exact", pool=2)
    worker.restart()
    for one in (worker, plain):
        one.step()
    for p, q in zip(worker.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("exact+graph", "graphs are CUDA's"),
        ("exact+", "after + comes compile or graph"),
        ("sgd+eager", "after + comes"),
    ],
)
def test_unknown_modes_are_refused(tmp_path, method, said, capsys):
    assert main(["step", "--net", "4-3-2", "--methods", method, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scaling(tmp_path, quick):
    record = run(tmp_path, "scaling", "--net", "4-4-2", "--batch", "6", *SMALL)
    assert {axis: [point["size"] for point in points] for axis, points in record["sweeps"].items()} == {
        "batch": [3, 6, 12],
        "width": [2, 4, 8],
        "depth": [1, 2, 4, 8],
        "rounds": [1, 2, 4, 8, 16],
    }
    for point in record["sweeps"]["depth"]:
        assert_samples(point["seconds_per_step"], "sgd", "exact", "cg:5", "proxbp")
    depth = [point["operations"]["sgd"] for point in record["sweeps"]["depth"]]
    steps = [(b - a) / layers for a, b, layers in zip(depth, depth[1:], (1, 2, 4), strict=False)]
    assert steps == [steps[0]] * 3  # each hidden layer costs the same
    assert list(record["sweeps"]["rounds"][2]["seconds_per_step"]) == ["cg:4"]


def test_roofline(tmp_path, quick):
    record = run(tmp_path, "roofline", "--net", "8-6-3", "--methods", "exact", *SMALL)
    (case,) = record["cases"]
    assert case["batch"] == 100
    assert_samples(case["seconds_per_step"], "sgd", "exact")
    assert record["product_rate"] > 0
    assert case["bandwidth"] > 0
    assert case["counted"].keys() == {"sgd", "exact"}
    assert_samples(case["calls"], "sgd", "exact")
    assert case["counted"]["exact"]["roof_seconds"] > case["counted"]["sgd"]["roof_seconds"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("command", ["step", "scaling", "roofline"])
def test_on_a_gpu(tmp_path, quick, command):
    net = "64-32-10" if command == "scaling" else "proxprop_convnet"
    record = run(tmp_path, command, "--net", net, "--batch", "16", *SMALL, "--device", "cuda")
    assert record["machine"]["device"] == torch.cuda.get_device_name()


def write_run(root, name, seed, accuracies, losses):
    folder = root / f"{name}-{seed}"
    folder.mkdir(parents=True)
    config = {"optimizer": {"name": name, "lr": 0.1}, "seed": seed, "dataset": "digits", "run_root": "runs"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        {"step": i, "seconds": 2.0 * i, "val_acc": accuracy, "train_loss": loss, "val_loss": loss, "train_acc": None}
        for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"device": "cpu", "threads": 3, "versions": {"torch": "2.9"}}
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "steps": 3, "environment": about}))


def test_time_to_target(tmp_path, capsys):
    runs = tmp_path / "runs"
    for seed in range(3):
        write_run(runs, "sgd", seed, [0.1, 0.9, 0.97, 0.979], [2.0, 1.0, 0.06, 0.05 if seed == 0 else 0.051])
        write_run(runs, "adam", seed, [0.1, 0.975, 0.98, 0.97], [2.0, 0.05, 0.04, 0.03])
    record = run(tmp_path / "out", "time_to_target", str(runs))
    ((problem,), (place,)) = record["problems"], record["trained_on"]
    assert place == "device cpu, threads 3, torch 2.9"
    found = {method["name"]: list(method["seconds"].values()) for method in problem["methods"]}
    assert found == {
        "sgd": [[4.0] * 3, [None] * 3, [6.0, None, None]],
        "adam": [[2.0] * 3, [4.0] * 3, [2.0] * 3],
    }
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sgd")]
    assert line.split()[2:] == ["3", "4", "[4,", "4]", "∞", "[∞,", "∞]", "∞", "[6,", "∞]"]


def test_readme_holds_every_record_of_the_folder(tmp_path, quick):
    net = ("--net", "4-3-2", "--methods", "exact", "--seconds", "0")
    run(tmp_path, "step", *net, "--threads", "1", "--no-memory")
    run(tmp_path, "roofline", *net, "--threads", "1")
    readme = (tmp_path / "README.md").read_text()
    headings = [line for line in readme.splitlines() if line.startswith("## ")]
    assert headings == ["## roofline, cpu, 1thread", "## step, cpu, 1thread"]


@pytest.mark.parametrize(("others", "told"), [(0.05, False), (1.8, True)])
def test_a_busy_machine_gives_a_warning(tmp_path, quick, capsys, monkeypatch, others, told):
    readings = iter([(100.0, 7.0, 50.0), (100.0 + 20.0 * others + 5.0, 12.0, 70.0)])  # 5 of our own in 20 seconds
    monkeypatch.setattr(Usage, "_read", lambda self: next(readings))
    run(tmp_path, "roofline", "--net", "4-3-2", "--methods", "exact", *SMALL)
    assert ("kept 1.8 cores busy" in capsys.readouterr().out) is told
    assert ("**Warning:** Other processes" in (tmp_path / "README.md").read_text()) is told


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["step", "--net", "784x500"], "--net 784x500"),
        (["step", "--net", "784"], "--net 784"),
        (["step", "--net", "8-0-3"], "--net 8-0-3"),
        (["step", "--batch", "0"], "--batch 0"),
        (["step", "--methods", "cg:0"], "--methods cg:0"),
        (["roofline", "--methods", "adam"], "--methods adam"),
        (["roofline", "--methods", "paper", "--net", "4-3-2"], "--methods paper"),
        (["step", "--net", "proxprop_convnet", "--methods", "proxprop"], "--methods proxprop"),
        (["step", "--net", "resnet8", "--activation", "tanh"], "--activation tanh"),
        (["step", "--activation", "cube"], "--activation cube"),
        (["step", "--net", "8-6-3", "--activation", "tanh", "--methods", "published"], "--methods published"),
        (["step", "--net", "8-3", "--methods", "muon"], "--methods muon"),
        (["step", "--threads", "2", "0"], "--threads 0"),
        (["step", "--threads", "0"], "--threads 0"),
        (["step", "--seconds", "-1"], "--seconds -1"),
        (["step", "--seconds", "inf"], "--seconds inf"),
        (["scaling", "--net", "8-6-5-3"], "--net"),
        (["scaling", "--net", "proxprop_convnet"], "--net"),
        (["time_to_target", "no/such/folder"], "no/such/folder"),
        (["revisions", "--old", "no-such-commit"], "--old"),
        (["revisions", "--old", "HEAD", "--rounds", "0"], "--rounds 0"),
        (["revisions", "--old", "HEAD", "--methods", "adam"], "--methods adam"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, capsys, words, named):
    assert main([*words, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused(tmp_path, capsys):
    assert main(["step", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_an_unwritable_folder_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "measure", lambda *_: pytest.fail("nothing is to be measured"))
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deeper", "a" * 300):
        assert main(["step", *SMALL, "--out", str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("give another --out.")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["step", *SMALL, "--out", str(tmp_path / "new")]) == 2
    assert f"({tmp_path} cannot be written to)" in capsys.readouterr().err


def test_a_record_that_cannot_be_written_is_printed(tmp_path, quick, capsys):
    (tmp_path / "README.md").mkdir()
    words = ["step", "--net", "4-3-2", "--methods", "exact", *SMALL, "--no-memory"]
    assert main([*words, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "give another --out" in err
    assert "4-3-2" in out


def test_a_reader_that_goes_away_does_not_cost_the_record(tmp_path, quick, monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        code = main(["step", "--net", "4-3-2", "--methods", "exact", *SMALL, "--no-memory", "--out", str(tmp_path)])
    assert code == 0
    assert list(tmp_path.glob("step*.json"))


def test_ctrl_c_is_one_sentence(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(step, "measure", interrupted)
    assert main(["step", *SMALL, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Interrupted: the measurement under way is not kept.\n"


def test_a_foreign_file_among_the_records_is_refused(tmp_path, quick, capsys):
    (tmp_path / "other.json").write_text("[]")
    words = ["step", "--net", "4-3-2", "--methods", "exact", *SMALL, "--no-memory"]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "other.json" in capsys.readouterr().err
    assert list(tmp_path.glob("step*.json"))  # completed measurements are kept
