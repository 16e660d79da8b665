"""The tuning command: equal trials, a choice without test data, fresh seeds, and no run lost or repeated."""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import sibp.train
from sibp.analysis.comparison import compare
from sibp.experiment import compose
from sibp.experiment.loop import Trainer
from sibp.runs.collect import collect
from sibp.runs.folder import RunFolder
from sibp.runs.identity import essential
from sibp.tune import main
from sibp.tuning.study import RunRecord, score_of
from sibp.tuning.sweep import names, read_sweep

SHARED = [
    "model.hidden=[8]",
    "max_steps=4",
    "log_every=2",
    "tensorboard=false",
    "threads=1",
    "device=cpu",
]
TINY: dict[str, Any] = {
    "shared": SHARED,
    "trials": 6,
    "tuning_seeds": [100],
    "final_seeds": [0, 1],
    "methods": {
        "sgd": {"overrides": ["optimizer=sgd"], "grid": {"lr": [0.01, 0.1], "momentum": [0.0, 0.9]}},
        "sibp": {
            "overrides": ["optimizer=sibp", "optimizer.solver=cg:2"],
            "grid": {"prox_weight": [1.0, 10.0], "lr": [0.3, 1.0]},
        },
    },
}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sibp.tune", "sklearn.datasets"])
RUNS = 2 * (6 + 2)
ROOT = Path("runs/tuning/tiny")


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ with the sweep `tiny`, in place of the project's."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compose.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(compose, "CONFIGS", tmp_path / "configs")
    write(TINY)
    return tmp_path / "configs"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed sweep."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        patch.chdir(folder)
        shutil.copytree(compose.CONFIGS, "configs")
        patch.setattr(compose, "CONFIGS", folder / "configs")
        write(TINY)
        assert tune() == 0
    return folder


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> dict[str, Any]:
    """The record of that sweep, in a copy of its folder."""
    shutil.copytree(whole / "runs", tmp_path / "runs")
    return record()


def write(content: Any) -> None:
    Path("configs/sweep/tiny.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))


def changed(**changes: Any) -> dict[str, Any]:
    return {**TINY, **changes}


def with_sgd(**grid: Any) -> dict[str, Any]:
    return changed(methods={**TINY["methods"], "sgd": {"overrides": ["optimizer=sgd"], "grid": grid}})


def record(root: Path = ROOT) -> dict[str, Any]:
    return json.loads((root / "tuning.json").read_text())


def without_seconds(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: without_seconds(value) for key, value in node.items() if key != "seconds"}
    return [without_seconds(item) for item in node] if isinstance(node, list) else node


def tune(*words: str) -> int:
    return main(["sweep=tiny", *words])


def last_row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_sweep_from_its_grids_to_its_record(monkeypatch, capsys):
    looked_at = set()
    original = Trainer.evaluate

    def evaluate(self, split, limit=None):
        part = next(name for name in ("train", "val", "test") if getattr(self.data, name) is split)
        looked_at.add((Path(self.settings.run_root).name, part))
        return original(self, split, limit)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert tune() == 0
    assert ("trials", "test") not in looked_at
    assert ("final", "test") in looked_at
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == RUNS + 1
    assert lines[0].startswith("completed   trial sgd lr=0.01 momentum=0 s100: train loss ")
    assert lines[-1] == f"{RUNS} runs: {RUNS} completed, 0 diverged, 0 failed, 0 skipped"

    found = record()
    assert found["finished"]
    assert [method["name"] for method in found["methods"]] == ["sgd", "sibp"]
    for method in found["methods"]:
        merits = []
        for trial in method["trials"]:
            (run,) = trial["runs"]
            row = last_row(ROOT / run["folder"])
            assert (run["seed"], run["status"], run["val_acc"]) == (100, "completed", row["val_acc"])
            assert "test_acc" not in json.loads((ROOT / run["folder"] / "summary.json").read_text())
            merits.append((-row["val_acc"], row["val_loss"], trial["setting"]["lr"]))
        assert len(merits) == 6
        assert method["chosen"] == method["trials"][merits.index(min(merits))]["setting"]
        assert [run["seed"] for run in method["final_runs"]] == [0, 1]
        for run in method["final_runs"]:
            config = yaml.safe_load((ROOT / run["folder"] / "config.yaml").read_text())
            assert config["optimizer"] == {**method["optimizer"], **method["chosen"]}
            assert run["test_acc"] == json.loads((ROOT / run["folder"] / "summary.json").read_text())["test_acc"]
    table = (ROOT / "tuning.md").read_text()
    assert "| sgd | 6 | " in table
    assert str(Path.cwd()) not in table + (ROOT / "tuning.json").read_text()


def test_the_report_sees_equal_budgets_and_the_same_choice(done):
    (problem,) = compare(collect([ROOT]).runs, None, None)
    for method, own in zip(problem.methods, done["methods"], strict=True):
        assert len(method.settings) == 6
        assert method.chosen is not None
        assert method.chosen.optimizer == essential({**own["optimizer"], **own["chosen"]})
        assert method.choice is not None
        assert (method.choice.tuning_seeds, method.choice.shown_seeds) == ({100}, {0, 1})
    assert {run.seed for run in collect([ROOT / "final"]).runs} == {0, 1}


def test_the_same_command_trains_nothing_again(done, monkeypatch, capsys):
    before = (ROOT / "tuning.json").read_bytes()
    (ROOT / "tuning.json").unlink()
    monkeypatch.setattr(Trainer, "_train_step", None)
    assert tune() == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{RUNS} runs: 0 completed, 0 diverged, 0 failed, {RUNS} skipped"
    assert (ROOT / "tuning.json").read_bytes() == before


def test_a_record_that_cannot_be_written_is_one_sentence_and_loses_no_run(done, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")  # a failed write has no file's name

    with monkeypatch.context() as patch:
        patch.setattr("sibp.tuning.record.write_atomic", full)
        assert tune() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " runs" not in line[:12]]  # progress
    assert line.startswith(
        "The record of the sweep cannot be written (No space left on device): all runs so far are kept"
    )
    assert tune() == 0
    assert " 0 completed" in capsys.readouterr().out


def test_a_dry_sweep_lists_its_runs_and_leaves_nothing(monkeypatch, capsys):
    steps = []
    original = Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", lambda self, indices: steps.append(1) or original(self, indices))
    assert tune("--dry") == 0
    assert len(steps) == 2 * (2 + 5)
    assert not Path("runs").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sgd: 8 runs, 0 finished, each about ")
    assert lines[0].endswith("(from a few steps)")
    assert lines[1] == "  trial lr=0.01 momentum=0 s100: not ended"
    assert lines[5:7] == [
        "  2 more trials, beyond an edge or around the best, as the results will suggest",
        "  final the chosen setting, seeds 0, 1",
    ]
    assert "estimate" in lines[-1]


def test_a_dry_sweep_knows_what_is_finished(done, capsys):
    assert tune("--dry") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sgd: 8 runs, 8 finished, each about ")
    assert lines[0].endswith("(as its finished runs took)")
    assert lines[-1].startswith("About 0.00 s left")


def test_divergence_counts_as_a_trial_and_never_wins(capsys):
    write(with_sgd(lr=[0.01, 1e30], momentum=[0.0, 0.9]))
    assert tune() == 0
    (sgd, _) = record()["methods"]
    statuses = [trial["runs"][0]["status"] for trial in sgd["trials"]]
    assert statuses[:4] == ["completed", "completed", "diverged", "diverged"]
    assert len(statuses) == 6
    assert sgd["chosen"]["lr"] < 1e30
    assert "2 diverged, 0 failed" in capsys.readouterr().out.splitlines()[-1]


def test_a_method_that_only_diverges_has_no_choice(capsys):
    write(with_sgd(lr=[1e29, 1e30], momentum=[0.0, 0.9]))
    assert tune() == 3
    (sgd, sibp) = record()["methods"]
    assert (sgd["chosen"], sgd["final_runs"], len(sgd["trials"])) == (None, [], 6)
    assert len(sibp["final_runs"]) == 2
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: sgd: ")]
    assert warnings == ["Warning: sgd: no setting completed, so none is chosen."]
    assert not record()["finished"]


def test_an_edge_left_when_the_budget_is_spent_is_reported(capsys):
    write(changed(trials=4))
    assert tune() == 0
    (edge,) = {edge for edge in record()["methods"][0]["edges"] if edge.startswith("lr")}
    assert edge == "lr = 0.1 is the largest tried"
    expected = f"sgd: the chosen {edge}, and no trial is left to look beyond: raise trials."
    assert expected in record()["warnings"]
    assert f"Warning: {expected}" in capsys.readouterr().err
    assert f"**{expected}**" in (ROOT / "tuning.md").read_text()


def test_runs_that_do_not_belong_to_the_sweep_are_reported(done, capsys):
    assert not any("do not belong to" in warning for warning in done["warnings"])
    write(with_sgd(lr=[0.02, 0.2], momentum=[0.0, 0.9]))
    assert tune() == 0
    error = capsys.readouterr().err
    assert "trials/ holds 6 runs that do not belong to this sweep" in error
    assert "final/ holds 2 runs of other settings: test data were evaluated before" in error


def test_a_failed_trial_is_recorded_and_retried(monkeypatch, capsys):
    original = Trainer.fit

    def fit(self, another):
        if self.settings.optimizer["lr"] == 0.1:
            raise RuntimeError("boom")
        original(self, another)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", fit)
        assert tune() == 1
    out, err = capsys.readouterr()
    assert "2 failed" in out.splitlines()[-1]
    assert "Warning: sgd: 2 trials failed" in err
    (sgd, sibp) = record()["methods"]
    assert [trial["runs"][0]["status"] for trial in sgd["trials"]][2:4] == ["failed", "failed"]
    assert sgd["trials"][2]["runs"][0]["reason"] == "RuntimeError: boom"
    assert len(sibp["final_runs"]) == 2
    assert tune() == 0
    assert record()["methods"][0]["trials"][2]["runs"][0]["status"] == "completed"


def test_a_sweep_waits_for_a_trial_that_another_process_trains(capsys):
    sweep = read_sweep("tiny", [])
    with RunFolder(sweep.job(sweep.methods[0], (1.0, 1.0), 100, final=False)).locked():
        assert tune() == 4
    (sgd, sibp) = record()["methods"]
    assert len(sgd["trials"]) == 4
    assert sgd["chosen"] is None
    assert len(sibp["final_runs"]) == 2
    assert "1 busy" in capsys.readouterr().out.splitlines()[-1]
    assert tune() == 0
    assert record()["finished"]


def gets_signal_at_step(configs: Path, step: int, number: int) -> None:
    """In a child process: tunes, and gets a signal before a given step."""
    compose.CONFIGS = configs
    taken = []
    original = Trainer._train_step

    def train_step(self, indices):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        return original(self, indices)

    Trainer._train_step = train_step
    with open("said", "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        raise SystemExit(tune())


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [
        (signal.SIGKILL, -signal.SIGKILL, 4 * 8 + 3),  # during the second round of trials
        (signal.SIGKILL, -signal.SIGKILL, 4 * 13 + 1),  # during a final run
        (signal.SIGINT, 130, 2),
        (signal.SIGINT, 130, 4 * 9),  # the last step of a run
    ],
)
@pytest.mark.slow
def test_the_same_command_resumes_any_run_to_the_same_end(number, code, step, configs, whole):
    child = SERVER.Process(target=gets_signal_at_step, args=(configs, step, number))
    child.start()
    child.join()
    assert child.exitcode == code
    if code == 130:
        said = Path("said").read_text().splitlines()
        assert said[-2] == "Interrupted: the same command resumes from here."
        assert "1 interrupted" in said[-1]
        assert not record()["finished"]
    trained = {path: path.stat().st_mtime_ns for path in ROOT.glob("*/*/summary.json")}
    assert tune() == 0
    assert all(path.stat().st_mtime_ns == moment for path, moment in trained.items())
    assert without_seconds(record()) == without_seconds(record(whole / ROOT))


@pytest.mark.slow
def test_a_launcher_gives_the_same_record(whole):
    assert tune("hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=1") == 0
    assert without_seconds(record()) == without_seconds(record(whole / ROOT))


FILES: dict[str, tuple[Any, str]] = {
    "unknown key": (changed(trails=3), "the file has no key trails; did you mean trials? The keys are: shared, "),
    "missing key": ({k: v for k, v in TINY.items() if k != "shared"}, "shared is missing: add it"),
    "no mapping": ("- a\n", "the file is not made of keys and values"),
    "no YAML": ("a: [", "configs/sweep/tiny.yaml cannot be read"),
    "type": (changed(trials="many"), "trials=many is not possible: give a whole number."),
    "words": (changed(shared=["epochs"]), "epochs cannot be read: write key=value"),
    "shared": (changed(shared="epochs=1"), "shared=epochs=1 is not possible: give a list of key=value overrides."),
    "shared seed": (changed(shared=["seed=1"]), "seed=1 is not possible: methods, tuning_seeds and final_seeds"),
    "criterion": (
        changed(criterion="test_acc"),
        "criterion=test_acc is not known; choose one of: val_acc, val_loss, train_loss.",
    ),
    "at": (changed(at="first"), "at=first is not known; choose one of: last, best."),
    "no seeds": (changed(tuning_seeds=[]), "tuning_seeds=[] is not possible"),
    "stale seed": (changed(final_seeds=[100]), "seed 100 is in tuning_seeds and in final_seeds"),
    "budget": (changed(trials=3), "trials=3 is less than the 4 settings of the initial grid"),
    "no methods": (changed(methods={}), "methods is empty"),
    "no looks": (changed(final_looks=0), "final_looks=0 is not possible: give a whole number of 1 or more."),
    "no early rows": (changed(final_early=0), "final_early=0 is not possible: give a whole number of 1 or more"),
    "like nothing": ({"like": "digits_quik"}, "there is no such sweep; did you mean digits_quick?"),
    "like itself": ({"like": "tiny"}, "like=tiny is not possible: name a sweep that is like no other itself."),
    "left out": ({"like": "digits_quick", "methods": {"adam": None}}, "methods.adam leaves nothing out"),
    "like, no mapping": ({"like": "digits_quick", "methods": 3}, "methods is not made of keys and values."),
    "sizes": (with_sgd(lr=[0.1, 0.2, 0.3], momentum=[0, 0.9]), "grids differ in size (sgd 6, sibp 4)"),
    "axis": (with_sgd(lr=[0.1, 0.2], momentun=[0, 0.9]), "has no key momentun; did you mean momentum?"),
    "values": (with_sgd(lr=[0.1, 0.2], momentum=[0.9, 1.0]), "[0.9, 1.0] is not possible: give numbers from 0"),
    "no list": (with_sgd(lr=0.1, momentum=[0, 0.9]), "methods.sgd.grid.lr=0.1 is not possible: give a list of numbers"),
    "method key": (changed(methods={"a": {"override": []}}), "methods.a has no key override; did you mean overrides?"),
    "problem": (
        changed(methods={"a": {"overrides": ["batch_size=5"], "grid": {"lr": [1, 2]}}}),
        "methods.a.overrides: batch_size=5 is no choice of an optimizer",
    ),
    "optimizer": (changed(methods={"a": {"overrides": ["optimizer=sgdd"]}}), "There is no optimizer 'sgdd'"),
    "solver": (
        changed(methods={"a": {"overrides": ["optimizer=sibp", "optimizer.solver=magic"], "grid": {"lr": [1, 2]}}}),
        "methods.a: optimizer=sibp cannot be built",
    ),
    "same method": (
        changed(methods={"a": TINY["methods"]["sgd"], "b": TINY["methods"]["sgd"]}),
        "methods a and b are both name=sgd",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_an_invalid_sweep_file_is_one_sentence_and_no_run(name, capsys):
    content, message = FILES[name]
    write(content)
    assert tune() == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()


WORDS = {
    "": f"Name one sweep: sweep={names()[0]}; there are: {names()[0]}, ",
    "sweep=tini": "There is no sweep 'tini'; did you mean tiny? Choose one of: ",
    "sweep=../tiny": "There is no sweep '../tiny'",
    "sweep=tiny seed=3": "seed=3 is not possible",
    "sweep=tiny optimizer.lr=3": "optimizer.lr=3 is not possible",
    "sweep=tiny epoch=3": "There is no setting epoch; did you mean epochs?",
    "sweep=tiny hydra.searchpath=x": "name the folder of your configs by --config-dir=DIR",
    "sweep=tiny run_root=/dev/null/x": "run_root",
}


@pytest.mark.parametrize("words", WORDS)
def test_invalid_overrides_are_one_sentence(words, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert WORDS[words] in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("word", ["sweep=tiny", "+sweep=tiny"])
def test_training_says_which_command_tunes(word, capsys):
    assert sibp.train.main([word]) == 2
    assert capsys.readouterr().err == f"{word} is for tuning: sibp tune sweep=tiny\n"


@pytest.mark.parametrize("dry", [[], ["--dry"]])
def test_a_failure_common_to_all_runs_is_reported_once(dry, capsys):
    assert tune("dataset=mnist", *dry) == 2
    error = capsys.readouterr().err
    assert "MNIST is missing" in error
    assert len(error.splitlines()) == 1


def test_help_is_complete(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("--dry", "sweep=NAME", "digits_quick", "tuning.json", "130 interrupted", "hydra/launcher"):
        assert part in text


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_shipped_sweep_is_a_fair_one(name):
    sweep = read_sweep(name, [])
    assert len(sweep.final_seeds) >= 5
    tuned = {method.config["optimizer"]["name"]: {axis.name for axis in method.axes} for method in sweep.methods}
    all_of = {"sgd": {"lr", "momentum"}, "proxbp": {"lr", "prox_weight"}, "sibp": {"lr", "prox_weight"}}
    all_of["muon"] = {"lr", "momentum"}
    assert all(tuned[method] == axes for method, axes in all_of.items() if method in tuned)
    assert tuned.keys() & all_of.keys()
    rest = [{k: v for k, v in method.config.items() if k != "optimizer"} for method in sweep.methods]
    assert all(config == rest[0] for config in rest)


def records(*pairs: tuple[float, float] | None) -> list[RunRecord]:
    folder = RunFolder({"run_root": "x"})
    return [
        RunRecord(i, folder, "completed" if pair else "diverged", None,
                  {"val_acc": pair[0], "val_loss": pair[1]} if pair else {}, 0.0)
        for i, pair in enumerate(pairs)
    ]  # fmt: skip


def test_a_setting_is_judged_by_its_median_over_the_tuning_seeds():
    runs = records((0.9, 0.5), (0.8, 0.1), (0.7, 0.3))
    assert score_of(runs, "val_acc") == (-0.8, 0.3)
    assert score_of(runs, "val_loss") == (0.3, -0.8)
    assert score_of(records((0.9, 0.5), (0.8, 0.1), None), "val_acc") == (-0.8, 0.5)
    for run, loss in zip(runs, (0.2, 0.3, 0.1), strict=True):
        run.metrics["train_loss"] = loss
    assert score_of(runs, "train_loss") == (0.2, 0.3)
    assert score_of(records((0.9, 0.5), None, None), "val_acc") == (math.inf, math.inf)


def test_the_best_logged_row_may_decide_instead_of_the_last():
    write(changed(criterion="val_loss", at="best", trials=4, tuning_seeds=[100, 101]))
    assert tune() == 0
    for method in record()["methods"]:
        for trial in method["trials"]:
            assert [run["seed"] for run in trial["runs"]] == [100, 101]
            for run in trial["runs"]:
                lines = (ROOT / run["folder"] / "metrics.jsonl").read_text().splitlines()
                assert run["val_loss"] == min(json.loads(line)["val_loss"] for line in lines)


def test_a_run_that_cannot_be_read_is_a_failed_trial(done):
    folder = ROOT / done["methods"][0]["trials"][0]["runs"][0]["folder"]
    (folder / "metrics.jsonl").write_text("{")
    assert tune() == 1
    (run,) = record()["methods"][0]["trials"][0]["runs"]
    assert run["status"] == "failed"
    assert "metrics.jsonl is missing or empty" in run["reason"]
    assert "force=true" in run["reason"]


def test_the_record_names_the_choice_before_the_final_runs_begin(done, monkeypatch):
    shutil.rmtree(ROOT / "final")
    original, seen = Trainer._train_step, []

    def train_step(self: Trainer, indices: Any) -> Any:
        seen.append(record())
        return original(self, indices)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    assert tune() == 0
    assert [method["chosen"] for method in seen[0]["methods"]] == [method["chosen"] for method in done["methods"]]
    assert not any("none is chosen" in warning for warning in seen[0]["warnings"])
