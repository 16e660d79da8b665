"""Names of runs and methods and their roles, without importing torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from sibp.analysis.comparison import compare
from sibp.experiment.compose import CONFIGS, compose
from sibp.runs.folder import RunFolder
from sibp.runs.identity import digest, digest_in, known_as, method_name, problem_of, role_of, run_name, setting_name
from sibp.runs.packed import read_packed
from sibp.runs.reading import Run, run_of
from sibp.runs.yaml_file import YamlError, parse_yaml, yaml_text

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("runs.jsonl")), ids=lambda path: "/".join(path.parts[-3:-1]))
def test_every_kept_run_is_still_the_one_of_its_settings(path):
    """The digest in a kept run's name equals the one computed from its settings now."""
    for run in read_packed(path):
        assert digest_in(run.path.name) == digest(run.config)


def test_a_name_contains_what_distinguishes_methods():
    for words, expected in {
        ("optimizer=sibp", "optimizer.solver=cg:3"): "digits-mlp500-sibp-cg3-lr0.3-pw1-s0-",
        ("optimizer=proxbp", "optimizer.prox_weight=2.5"): "digits-mlp500-proxbp-exact-lr0.3-pw2.5-s0-",
        ("optimizer=sgd", "seed=7"): "digits-mlp500-sgd-lr0.1-s7-",
        ("optimizer=sgd", "optimizer.momentum=0.9"): "digits-mlp500-sgd-lr0.1-m0.9-s0-",
        ("optimizer=sibp_muon",): "digits-mlp500-sibp_muon-cg5-lr0.01-pw1-",
        ("optimizer=sibp_adam",): "digits-mlp500-sibp_adam-cg5-lr0.001-pw1-",
        ("optimizer=sibp_momentum",): "digits-mlp500-sibp_momentum-",
    }.items():
        config = compose([*words, "dataset=digits", "model.hidden=[500]"])
        assert run_name(config).startswith(expected), run_name(config)


def test_every_optimizer_config_has_a_unique_method_name():
    configs = [compose([f"optimizer={path.stem}"])["optimizer"] for path in (CONFIGS / "optimizer").glob("*.yaml")]
    names = [method_name(config) for config in configs]
    assert len(set(names)) == len(names)
    assert "sibp_fed" not in " ".join(names)
    assert known_as({"name": "sibp_fed", "outer": "rmsprop"}) == "sibp_fed"  # not in any config


def test_a_folder_of_an_earlier_version_is_found_by_its_digest(tmp_path):
    config = {**compose(["optimizer=sibp"]), "run_root": str(tmp_path)}
    old = tmp_path / f"digits-mlp500-sibp-lr0.3-s0-{digest(config)}"
    old.mkdir()
    assert RunFolder(config).path == old
    assert RunFolder({**config, "seed": 1}).path.name == run_name({**config, "seed": 1})


def test_where_and_how_a_run_is_executed_changes_neither_problem_nor_run():
    config = compose([])
    for change in ({"role": "trial"}, {"threads": 3}, {"evaluate_test": False}, {"run_root": "elsewhere"}):
        assert digest({**config, **change}) == digest(config)
        assert problem_of({**config, **change}) == problem_of(config)
    assert digest({**config, "log_every": 7}) != digest(config)
    assert problem_of({**config, "log_every": 7}) == problem_of(config)
    assert problem_of({**config, "eval_train_limit": 7}) != problem_of(config)


def test_labels_are_the_methods_options_and_numbers():
    optimizer = {"name": "sibp", "lr": 0.30, "prox_weight": 10.0, "solver": "cg:5", "weight_decay": 0.0}
    assert method_name(optimizer) == "sibp cg:5"
    assert setting_name(optimizer) == "lr=0.3 prox_weight=10"


ROW = {"step": 0, "seconds": 0.0, "train_loss": 1.0, "train_acc": 0.5, "val_loss": 1.0, "solver": {}}


def made(lr: float, seed: int, accuracy: float, **config) -> Run:
    summary = {"status": "completed", "steps": 0, "final": {}}
    settings = {"optimizer": {"name": "sgd", "lr": lr}, "seed": seed, **config}
    return run_of(Path(f"{lr}-{seed}"), settings, summary, [{**ROW, "val_acc": accuracy}], [])


def test_the_report_reads_which_runs_were_trials():
    """Most settings have seeds 0 to 4, but the runs say that 9 was the tuning seed; by it, the first is better."""
    runs = [made(lr, seed, 0.5 + 0.4 * (lr == 0.2), role="final") for lr in (0.1, 0.2) for seed in range(5)]
    runs += [made(0.1, 9, 0.9, role="trial"), made(0.2, 9, 0.1, role="trial")]
    (problem,) = compare(runs, None, None)
    (method,) = problem.methods
    assert method.chosen is not None
    assert method.chosen.optimizer["lr"] == 0.1
    assert method.choice is not None
    assert (method.choice.tuning_seeds, method.choice.shown_seeds) == ({9}, {0, 1, 2, 3, 4})


def test_roles_of_runs_without_recorded_roles():
    assert role_of({"evaluate_test": False}) == "trial"
    assert role_of({"evaluate_test": True}) is None
    assert role_of({"evaluate_test": True, "role": "trial"}) == "trial"  # test metrics were added later
    assert role_of({"role": ["trial"]}) is None


def test_run_folders_are_read_without_torch():
    modules = [f"sibp.runs.{path.stem}" for path in (RESULTS.parent / "sibp" / "runs").glob("[a-z]*.py")]
    code = f"import sys\nimport {', '.join(modules)}\nsys.exit(any(m in sys.modules for m in ('torch', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


TEXTS = [
    "a: 1e-3",
    "a: -1e3",
    "a: 1.",
    "a: .5",
    "a: 2020-01-01",
    "a: yes",
    "a: 1_000",
    "a: 0x10",
    "a: ~\nb: [x, 'y']",
    "a: &a {x: 1}\nb: {<<: *a, y: 2}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_yaml_is_read_like_hydra_reads_it(text):
    assert parse_yaml(text) == OmegaConf.to_container(OmegaConf.create(text))
    assert parse_yaml(yaml_text(parse_yaml(text))) == parse_yaml(text)


def test_strings_that_look_like_something_else_come_back_as_strings():
    value = {"a": ["1e-3", "1e3", "yes", "null", "2020-01-01", "12", "", "x: y", "ü", "#"], "b": 1e-05, "c": None}
    assert parse_yaml(yaml_text(value)) == value
    assert json.loads(json.dumps(parse_yaml(yaml_text(value)))) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: a is given twice"),
        ("a:\n\tb: 1", "line 2: .*tabs cannot indent"),
        ("a: [1", "line 1: "),
        ("a: !!python/object/apply:os.getcwd []", "constructor for the tag"),
    ],
)
def test_invalid_yaml_is_one_line_with_its_position(text, reason):
    with pytest.raises(YamlError, match=reason) as error:
        parse_yaml(text)
    assert len(str(error.value).splitlines()) == 1


def test_pyyaml_alone_would_differ():
    """Only one reader opens the files, for this reason."""
    assert yaml.safe_load("a: 1e-3") == {"a": "1e-3"}
