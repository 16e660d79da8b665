"""The list of experiments: every command is valid, and kept files match the runs."""

import importlib.util
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from sibp.experiment.compose import compose, plan
from sibp.experiment.overrides import GROUPS
from sibp.experiment.settings import Settings
from sibp.runs.collect import collect
from sibp.train import main as train
from sibp.tuning import sweep

PROJECT = Path(__file__).parents[1]
LIST = PROJECT / "results" / "experiments.yaml"


def eight_digits(value):
    """The value with its floats as kept runs have them."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.8g}"))


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", PROJECT / "scripts" / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reproduce"]


@pytest.fixture
def first_method_only(monkeypatch):
    """One method of each sweep is composed, as its commands' overrides are the same for all."""
    whole = sweep._merged_with_base

    def first(content, files):
        content = whole(content, files)
        return {**content, "methods": dict([*content["methods"].items()][:1])}

    monkeypatch.setattr(sweep, "_merged_with_base", first)


@pytest.mark.slow
def test_every_command_is_one_that_its_program_takes(reproduce, first_method_only):
    tuned = defaultdict(list)  # per sweep, the words of all its commands: composing a config is slow
    seen = set()  # likewise, one command per set of keys and groups

    def key(word):
        name, _, value = word.partition("=")
        return name, value if name in GROUPS else ""

    for experiment in reproduce.read_experiments(LIST).values():
        for words in reproduce.commands(experiment, Path("runs"), ["data_root=data", "threads=1"]):
            if words[0].startswith("scripts/"):
                assert (PROJECT / words[0]).is_file()
            elif words[1] == "sibp.tune":
                tuned[words[2].removeprefix("sweep=")] += words[3:]
            elif (keys := frozenset(map(key, words[3:]))) not in seen:
                seen.add(keys)
                (config,) = plan([word if "[" in word else word.partition(",")[0] for word in words[3:]], sweep=True)
                assert Settings.from_config(config).eval_val_limit is None
    for name, words in tuned.items():
        (method,) = sweep.read_sweep(name, words).methods
        assert method.config["eval_val_limit"] is None  # the same for all methods, as test_tune asserts


def test_final_settings_have_five_seeds_or_more(reproduce):
    for experiment in reproduce.read_experiments(LIST).values():
        for command in experiment.commands.values():
            if command.startswith(("train", "chosen")):
                (seeds,) = (word.removeprefix("seed=") for word in command.split() if word.startswith("seed="))
                assert len(set(seeds.split(","))) >= 5, (experiment.name, command)


def write_list(folder: Path, commands: dict[str, str]) -> Path:
    (folder / "experiments.yaml").write_text(
        json.dumps({"tiny": {"asks": "Anything?", "minutes": 0.1, "commands": commands}})
    )
    return folder / "experiments.yaml"


def test_an_experiment_is_kept_once_all_its_runs_have_ended(reproduce, tmp_path):
    words = ["model.hidden=[4]", "max_steps=4", "log_every=2", "device=cpu", "data_root=/data"]
    path = write_list(tmp_path, {"sgd": f"train {' '.join(words)} optimizer=sgd seed=0,1"})
    tiny = reproduce.read_experiments(path)["tiny"]
    results = tmp_path / "results"
    (results / "tiny" / "old").mkdir(parents=True)
    assert "does not exist" in reproduce.keep(tiny, tmp_path, results)

    (command,) = reproduce.commands(tiny, tmp_path, ["threads=1"])
    assert command[:3] == ["-m", "sibp.train", "-m"]
    assert train(command[2:]) == 0
    assert reproduce.keep(tiny, tmp_path, results) is None
    assert not (results / "tiny" / "old").exists()
    assert str(tmp_path) not in (results / "tiny" / "sgd" / "runs.jsonl").read_text()
    kept, made = (collect([place / "tiny"]).runs for place in (results, tmp_path))
    assert [run.path.name for run in kept] == [run.path.name for run in made]
    assert [run.summary["final"] for run in kept] == eight_digits([run.summary["final"] for run in made])

    (made[0].path / "summary.json").unlink()
    before = (results / "tiny" / "sgd" / "runs.jsonl").read_text()
    assert reproduce.keep(tiny, tmp_path, results).startswith("1 runs have not ended")
    assert (results / "tiny" / "sgd" / "runs.jsonl").read_text() == before


def kept_lines(results: Path) -> list[dict]:
    return [json.loads(line) for line in (results / "tiny" / "sibp" / "runs.jsonl").read_text().splitlines()]


def test_another_machine_resumes_from_finished_runs(reproduce, tmp_path, monkeypatch):
    words = "max_steps=4 log_every=2 device=cpu model.hidden=[4] seed=0,1,2"
    path = write_list(tmp_path, {"sibp": f"train {words} optimizer=sibp"})
    tiny = reproduce.read_experiments(path)["tiny"]
    monkeypatch.setattr(reproduce, "RESULTS", results := tmp_path / "results")
    first, second = tmp_path / "first", tmp_path / "second"
    trained = []

    def train_some(command, run_root, own):
        (line,) = reproduce.commands(tiny, run_root, own)
        trained.append(train([word.replace("seed=0,1,2", seeds) for word in line[2:]]))
        return 1 if seeds == "seed=0,1" else 0

    monkeypatch.setattr(reproduce, "run", train_some)
    monkeypatch.setattr(reproduce.keep, "__defaults__", (results,))
    monkeypatch.setattr(reproduce.save, "__defaults__", (results,))
    seeds = "seed=0,1"
    assert "exit code 1" in reproduce._reproduce(tiny, first, ["threads=1"])
    assert not (results / "tiny").exists()

    seeds = "seed=0,1,2"
    assert reproduce._reproduce(tiny, second, ["threads=1"]) is None
    assert trained == [0, 0]
    assert not (results / "unfinished" / "tiny").exists()
    runs = {place: {run.seed: run for run in collect([place / "tiny"]).runs} for place in (first, second)}
    for seed, run in runs[first].items():
        again = runs[second][seed]
        assert eight_digits(run.summary) == {**again.summary, "environment": run.summary["environment"]}
        assert eight_digits(run.columns["seconds"].tolist()) == again.columns["seconds"].tolist()  # so not trained anew
    assert set(runs[second]) == {0, 1, 2}

    # Kept runs are restored exactly, solver statistics included.
    kept = kept_lines(results)
    assert reproduce.restore(tiny, tmp_path / "third", results) == 3
    assert reproduce.restore(tiny, tmp_path / "third", results) == 0
    assert reproduce.keep(tiny, tmp_path / "third", results) is None
    assert kept_lines(results) == kept
    assert all(line["solver"] for line in kept[1:])

    damaged = results / "tiny" / "sibp" / "runs.jsonl"
    damaged.write_text(damaged.read_text()[:-40])
    with pytest.raises(reproduce.UsageError, match=r"runs.jsonl cannot be used: line 4 is damaged"):
        reproduce.restore(tiny, tmp_path / "fourth", results)


def test_chosen_settings_are_those_of_the_kept_record(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    path = write_list(tmp_path, {".": "chosen other seed=0,1"})
    tiny = reproduce.read_experiments(path)["tiny"]
    with pytest.raises(reproduce.UsageError, match="other is not kept yet"):
        list(reproduce.commands(tiny, tmp_path, []))
    (tmp_path / "other").mkdir()
    sibp = {"name": "sibp cg:3", "optimizer": {"name": "sibp", "solver": "cg:3"}, "chosen": {"lr": 0.7}}
    dead = {"name": "sgd", "optimizer": {"name": "sgd", "nesterov": False}, "chosen": None}
    (tmp_path / "other" / "tuning.json").write_text(json.dumps({"methods": [sibp, dead]}))
    (command,) = reproduce.commands(tiny, tmp_path, [])
    chosen = ["optimizer=sibp", "optimizer.solver=cg:3", "optimizer.lr=0.7"]
    assert command[3:-2] == ["seed=0,1", *chosen, "eval_val_limit=null"]


def test_a_chosen_setting_finds_its_config_where_that_has_another_name(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    (tmp_path / "other").mkdir()
    for config in ("locoprop_m", "sibp_adam", "proxprop_adam", "foof", "adam", "adam_cosine", "schedule_free"):
        optimizer = compose([f"optimizer={config}"])["optimizer"]
        rest = {"lr": optimizer.pop("lr")}
        record = {"methods": [{"name": "x", "optimizer": optimizer, "chosen": rest}]}
        (tmp_path / "other" / "tuning.json").write_text(json.dumps(record))
        tiny = reproduce.read_experiments(write_list(tmp_path, {".": "chosen other seed=0"}))["tiny"]
        (command,) = reproduce.commands(tiny, tmp_path, [])
        assert compose(command[4:-2])["optimizer"] == {**optimizer, **rest}


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ({"asks": "?", "minutes": 1}, "tiny: missing 1 required positional argument: 'commands'"),
        ({"asks": "?", "minutes": 1, "commands": {}, "hours": 2}, "unexpected keyword argument 'hours'"),
        ({"asks": "?", "minutes": 1, "commands": {".": "rm -r /"}}, "rm -r / does not begin with one of train, tune"),
    ],
)
def test_an_invalid_entry_is_named(reproduce, tmp_path, node, sentence):
    (tmp_path / "experiments.yaml").write_text(json.dumps({"tiny": node}))
    with pytest.raises(reproduce.UsageError, match=r"experiments.yaml: tiny: ") as error:
        reproduce.read_experiments(tmp_path / "experiments.yaml")
    assert sentence in str(error.value)


def test_only_experiments_that_are_not_kept_are_run_by_default(reproduce, tmp_path, monkeypatch, capsys):
    shutil.copy(PROJECT / "results" / "experiments.yaml", tmp_path)
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "runs.jsonl").touch()
    monkeypatch.setattr(reproduce, "is_kept", lambda name, results: (tmp_path / name).exists())
    listed = reproduce.read_experiments(tmp_path / "experiments.yaml")
    names = [each.name for each in reproduce._wanted([], listed)]
    assert "depth" in names
    assert "rounds" not in names
    assert not any(name.endswith("_full") for name in names)
    assert "rounds is kept already" in capsys.readouterr().out
    assert [each.name for each in reproduce._wanted(["cifar10_full", "rounds"], listed)] == ["rounds", "cifar10_full"]
    with pytest.raises(reproduce.UsageError, match="There is no experiment 'ronds'"):
        reproduce._wanted(["ronds"], listed)
