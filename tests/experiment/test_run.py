"""The files of a run, and when it is trained again."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sibp.experiment import loop
from sibp.experiment.clock import Clock
from sibp.experiment.loop import Trainer
from sibp.experiment.models import build_model
from sibp.experiment.objectives import CLASSIFICATION
from sibp.experiment.runner import run
from sibp.experiment.seeding import BatchOrder
from sibp.prox import kernels
from sibp.runs.errors import UserError
from sibp.runs.folder import RunFolder
from sibp.runs.identity import run_name

METHODS = ("sgd", "adam", "sibp", "proxbp")


def summary_of(folder: RunFolder) -> dict[str, Any]:
    summary = folder.summary()
    assert summary is not None
    return summary


def test_a_run_folder_has_the_documented_files(make_config):
    config = make_config()
    outcome = run(config)
    assert outcome.status == "completed"
    folder = outcome.folder
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == config
    rows = folder.rows()
    assert [row["step"] for row in rows] == [0, 4, 8, 12, 16, 20]
    keys = {"step", "epoch", "seconds", "train_loss", "train_acc", "val_loss", "val_acc"}
    assert all(row.keys() == keys for row in rows)
    assert rows[-1]["epoch"] == 20 / (1297 // 50)
    summary = summary_of(folder)
    assert summary["status"] == "completed"
    assert summary["final"] == rows[-1]
    assert summary["best_val_acc"] == max(row["val_acc"] for row in rows)
    assert summary["initial_train_loss"] == rows[0]["train_loss"] == pytest.approx(math.log(10), abs=0.2)
    assert summary["samples"] == {"train": 1297, "val": 250, "test": 250}
    assert {"test_loss", "test_acc", "seconds", "environment"} <= summary.keys()
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]
    assert summary["environment"]["kernels"] == kernels.description()


def test_every_method_starts_from_the_same_weights_and_sees_the_same_batches(make_config):
    summaries = [summary_of(run(make_config(name)).folder) for name in METHODS]
    other = summary_of(run(make_config(seed=1)).folder)
    for key in ("initial_weights_sha256", "batches_sha256", "initial_train_loss", "data_sha256"):
        assert len({summary[key] for summary in summaries}) == 1
    for key in ("initial_weights_sha256", "batches_sha256", "initial_train_loss"):
        assert other[key] != summaries[0][key]
    assert other["data_sha256"] == summaries[0]["data_sha256"]
    assert len({summary["final"]["train_loss"] for summary in summaries}) == len(METHODS)


def test_a_run_trains_on_noisy_labels_and_validates_on_correct_ones(make_config):
    clean, noisy = (run(make_config(label_noise=noise)).folder.rows()[0] for noise in (0.0, 1.0))
    assert noisy["train_acc"] != clean["train_acc"]
    assert (noisy["val_loss"], noisy["val_acc"]) == (clean["val_loss"], clean["val_acc"])


def test_solver_statistics_are_logged_per_layer(make_config):
    rows = run(make_config("sibp")).folder.rows()
    assert "solver" not in rows[0]
    assert set(rows[-1]["solver"]) == {"0", "2"}
    assert rows[-1]["solver"]["0"]["iterations"] == 3


def test_target_is_the_first_logged_step_that_meets_it(make_config):
    outcome = run(make_config(max_steps=40))
    summary, rows = summary_of(outcome.folder), outcome.folder.rows()
    before = [row for row in rows if row["step"] < summary["steps_to_target"]]
    (met,) = [row for row in rows if row["step"] == summary["steps_to_target"]]
    assert met["val_acc"] >= 0.5
    assert all(row["val_acc"] < 0.5 for row in before)
    assert summary["seconds_to_target"] == met["seconds"]


def test_outputs_that_are_not_numbers_are_wrong():
    outputs = torch.tensor([[math.nan] * 3, [1.0, math.nan, 0.0], [2.0, -math.inf, 0.0]])
    assert CLASSIFICATION.right is not None
    assert CLASSIFICATION.right(outputs, torch.tensor([0, 1, 0])) == 1


def test_a_target_never_met_is_null(make_config):
    summary = summary_of(run(make_config(target_val_acc=1.0)).folder)
    assert summary["steps_to_target"] is None
    assert summary["seconds_to_target"] is None


def test_a_completed_run_is_skipped_and_force_retrains_it(make_config):
    config = make_config()
    first = run(config)
    rows = first.folder.metrics.read_bytes()
    again = run({**config, "checkpoint_every": 7, "progress": True})  # neither is part of the result
    assert again.status == "skipped"
    assert "force=true" in again.message
    assert first.folder.metrics.read_bytes() == rows
    anew = run({**config, "force": True})
    assert anew.status == "completed"
    assert anew.folder.path == first.folder.path
    assert len(anew.folder.rows()) == len(rows.splitlines())
    assert anew.folder.metrics.read_bytes() != rows  # other seconds


def test_an_invalid_forced_run_deletes_nothing(make_config, monkeypatch):
    config = make_config(dataset={"name": "mnist"})
    folder = RunFolder(config)
    folder.path.mkdir(parents=True)
    folder.metrics.write_text("kept")
    assert run({**config, "force": True}).status == "failed"
    assert folder.metrics.read_text() == "kept"


def test_a_diverged_run_is_kept_with_its_reason(make_config):
    config = make_config(optimizer="sgd", max_steps=50)
    config["optimizer"]["lr"] = 1e30
    outcome = run(config)
    summary = summary_of(outcome.folder)
    assert outcome.status == summary["status"] == "diverged"
    assert summary["diverged_step"] == 2  # not the next logged step
    assert "at step 2" in summary["reason"]
    assert summary["diverged_loss"] in ("nan", "inf")
    assert outcome.folder.rows()[0]["step"] == 0
    assert "test_acc" not in summary
    again = run(config)
    assert again.status == "diverged"
    assert "force=true" in again.message


def test_a_finite_loss_far_above_the_start_is_divergence(make_config):
    config = make_config(optimizer="sgd", max_steps=2)
    config["optimizer"]["lr"] = 1e6
    outcome = run(config)
    summary, rows = summary_of(outcome.folder), outcome.folder.rows()
    assert 1000 * rows[0]["train_loss"] < rows[-1]["train_loss"] < float("inf")
    assert outcome.status == summary["status"] == "diverged"
    assert summary["diverged_step"] == rows[-1]["step"] == 2  # all steps were taken
    assert f"ended at {rows[-1]['train_loss']:.3g}" in outcome.message
    assert "test_acc" not in summary


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_names_the_settings_to_reduce(make_config, monkeypatch, error):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_optimize", fail)
    outcome = run(make_config(batch_size=77))
    assert outcome.status == "failed"
    assert outcome.message.startswith("out of memory: give a smaller model, or a batch_size below 77 (")
    assert summary_of(outcome.folder)["reason"] == outcome.message


def test_two_processes_never_train_the_same_run(make_config):
    config = make_config()
    with RunFolder(config).locked():
        outcome = run(config)
    assert outcome.status == "busy"
    assert "process" in outcome.message
    assert run(config).status == "completed"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"max_steps": 21},
        {"batch_size": 51},
        {"log_every": 5},
        {"eval_train_limit": None},
        {"eval_val_limit": 100},
        {"schedule": "cosine"},
        {"schedule": "cosine", "decays": "prox_weight"},
        {"warmup_steps": 3},
        {"label_noise": 0.2},
        {"replacement": True},
        {"train_limit": 400},
        {"model": {"name": "mlp", "hidden": [16], "activation": "tanh", "init": "default", "init_std": None}},
    ],
)
def test_settings_that_change_the_result_change_the_name(make_config, change):
    assert run_name(make_config()) != run_name(make_config(**change))


def test_nested_settings_change_the_name(make_config):
    config = make_config()
    config["optimizer"]["momentum"] = 0.5
    assert run_name(make_config()) != run_name(config)


@pytest.mark.parametrize(
    "change",
    [{"run_root": "elsewhere"}, {"data_root": "x"}, {"force": True}, {"progress": True}, {"device": "cuda"}],
)
def test_where_and_how_a_run_is_executed_is_not_part_of_its_name(make_config, change):
    assert run_name(make_config()) == run_name(make_config(**change))


def test_settings_added_later_keep_the_names_of_earlier_runs(make_config):
    now = make_config(replacement=False)
    later = ("schedule", "decays", "warmup_steps", "label_noise", "replacement")
    assert run_name(now) == run_name({key: value for key, value in now.items() if key not in later})


def test_an_mlp_from_before_its_activation_was_a_setting_keeps_its_name(make_config):
    """An autoencoder's activation has always been a setting, and stays in the name."""
    kept = (Path(__file__).parents[2] / "results/mnist_mlp/final/runs.jsonl").read_text().splitlines()
    shared, first = (json.loads(line) for line in kept[:2])
    config = shared["config"] | {key: shared["config"].get(key, {}) | value if isinstance(value, dict) else value
                                 for key, value in first["config"].items()}  # fmt: skip
    config["model"]["activation"] = "relu"
    assert run_name(config) == first["run"]
    config = make_config()
    named = config | {"model": config["model"] | {"activation": "relu"}}
    assert run_name(named) == run_name(config)
    autoencoder = config["model"] | {"name": "autoencoder"}
    names = [run_name(config | {"model": autoencoder | {"activation": name}}) for name in ("relu", "tanh")]
    assert len({*names, run_name(config | {"model": autoencoder})}) == 3


def test_one_and_one_point_zero_are_the_same_setting(make_config):
    names = []
    for lr in (1, 1.0):
        config = make_config()
        config["optimizer"]["lr"] = lr
        names.append(run_name(config).rpartition("-")[2])
    assert names[0] == names[1]


def test_a_name_is_readable_and_safe(make_config):
    assert run_name(make_config("sibp")).startswith("digits-mlp16-sibp-cg3-lr0.3-pw1-s0-")
    odd = run_name(make_config(dataset={"name": "../../etc"}))
    assert "/" not in odd


def test_compilation_in_the_first_step_is_not_training_time(make_config, monkeypatch):
    usual = summary_of(run(make_config("sibp")).folder)
    now, taken = [0.0], []
    original = Trainer._optimize
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def compiles_first(*args: Any) -> Any:
        now[0] += 1.0 if taken else 100.0
        taken.append(1)
        return original(*args)

    monkeypatch.setattr(Trainer, "_optimize", compiles_first)
    summary = summary_of(run(make_config("sibp", force=True)).folder)
    assert len(taken) == 1 + 20
    assert summary["first_step_seconds"] == 100
    assert summary["seconds"]["train"] == 20
    for key in ("batches_sha256", "initial_weights_sha256"):
        assert summary[key] == usual[key]
    assert summary["final"] == usual["final"] | {"seconds": 20}  # a step that was not kept has left nothing behind


def test_training_seconds_hold_training_and_nothing_else(make_config, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(seconds: float, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def slow(*args: Any) -> Any:
            now[0] += seconds
            return original(*args)

        monkeypatch.setattr(owner, name, slow)

    takes(1, Trainer, "_train_step")
    takes(10, Trainer, "evaluate")
    takes(100, RunFolder, "append_row")
    takes(1000, loop, "save_checkpoint")
    seconds = summary_of(run(make_config()).folder)["seconds"]
    # 20 steps, 6 rows of training and validation metrics, 4 checkpoints
    assert seconds == {"train": 20, "eval": 120, "log": 4600}


def test_a_clock_waits_for_the_device_at_both_ends(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(device))
    clock = Clock(torch.device("cuda"))
    with clock.measure("train"):
        assert len(calls) == 1
    assert len(calls) == 2
    assert clock.seconds["train"] > 0
    assert clock.seconds["eval"] == 0


def test_batches_are_a_pure_function_of_seed_and_step():
    order = BatchOrder(count=103, batch_size=10, seed=3)
    assert order.steps_per_epoch == 10
    batches = [order.batch(step) for step in range(20)]
    assert torch.equal(BatchOrder(103, 10, 3).batch(17), batches[17])  # without drawing the earlier steps
    assert all(len(batch) == 10 for batch in batches)
    for epoch in (batches[:10], batches[10:]):
        assert len(torch.cat(epoch).unique()) == 100
    assert not torch.equal(batches[0], batches[10])
    assert not torch.equal(BatchOrder(103, 10, 4).batch(0), batches[0])


def test_batches_drawn_with_replacement_are_a_pure_function_of_seed_and_step_and_may_repeat_an_image():
    order = BatchOrder(count=103, batch_size=50, seed=3, replacement=True)
    batches = [order.batch(step) for step in range(400)]
    assert torch.equal(BatchOrder(103, 50, 3, replacement=True).batch(17), batches[17])  # no earlier draws needed
    assert not torch.equal(BatchOrder(103, 50, 4, replacement=True).batch(17), batches[17])
    assert all(len(batch) == 50 for batch in batches)
    assert sum(len(batch.unique()) < 50 for batch in batches) > 390  # 50 distinct ones of 103 are very unlikely
    counts = torch.bincount(torch.cat(batches), minlength=103)
    expected = 400 * 50 / 103
    assert (counts - expected).abs().max() < 6 * expected**0.5  # uniform over images, within six sigma


def test_a_run_that_draws_with_replacement_has_other_batches(make_config):
    plain, drawn = (run(make_config(replacement=value)).folder.summary() for value in (False, True))
    assert plain
    assert drawn
    assert plain["initial_weights_sha256"] == drawn["initial_weights_sha256"]
    assert plain["batches_sha256"] != drawn["batches_sha256"]


def test_initial_weights_depend_only_on_seed_and_config():
    config = {"name": "mlp", "hidden": [4]}

    def weights(seed: int) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(build_model(config, (1, 3, 3), 2, seed).parameters())

    first = weights(0)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(weights(0), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(weights(1), first)


def test_he_weights_have_variance_two_over_inputs_and_no_bias():
    model = build_model({"name": "mlp", "hidden": [400], "init": "he", "init_std": None}, (1, 30, 30), 200, 0)
    for layer, inputs in zip((model[0], model[2]), (900, 400), strict=True):
        assert layer.weight.var().item() == pytest.approx(2 / inputs, rel=0.02)  # 80,000 weights: 0.5 % is one sigma
        assert not layer.bias.any()
    with pytest.raises(UserError, match=r"model.init_std=0.1 has no effect without model.init=normal"):
        build_model({"name": "mlp", "hidden": [4], "init": "he", "init_std": 0.1}, (1, 3, 3), 2, 0)


def test_the_activation_of_an_mlp_is_a_setting():
    x = torch.linspace(-2, 2, 9).reshape(1, 9)
    for name in ("tanh", "elu", "softplus"):
        model = build_model({"name": "mlp", "hidden": [4, 3], "activation": name}, (1, 3, 3), 2, 0)
        first, _, second, _, last = model.children()
        s = getattr(torch.nn.functional, name)
        assert torch.equal(model(x), last(s(second(s(first(x))))))
    with pytest.raises(UserError, match=r"model\.activation=step is not known; choose one of: relu, leaky_relu"):
        build_model({"name": "mlp", "hidden": [4], "activation": "step"}, (1, 3, 3), 2, 0)


def test_normal_initialisation_covers_weights_and_biases():
    config = {"name": "mlp", "hidden": [2000], "init": "normal", "init_std": 0.05}
    model = build_model(config, (1, 10, 10), 10, 0)
    assert [tuple(p.shape) for p in model.parameters()] == [(2000, 100), (2000,), (10, 2000), (10,)]
    for parameter in list(model.parameters())[:3]:
        assert parameter.std().item() == pytest.approx(0.05, rel=0.1)
        assert abs(parameter.mean().item()) < 0.005


def test_test_data_are_not_evaluated_until_requested(make_config, monkeypatch):
    seen = []
    original = Trainer.evaluate

    def evaluate(self, split, limit=None):
        seen.append(split is self.data.test)
        return original(self, split, limit)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    config = make_config(evaluate_test=False)
    folder = run(config).folder
    assert not any(seen)
    assert "test_acc" not in (folder.summary() or {})

    def no_training(*_):
        raise AssertionError("test metrics need no training")

    monkeypatch.setattr(Trainer, "_train_step", no_training)
    assert run({**config, "evaluate_test": True}).status == "completed"
    assert seen.count(True) == 1
    later = folder.summary() or {}
    monkeypatch.undo()
    at_once = run({**make_config(), "force": True}).folder.summary() or {}
    assert (later["test_loss"], later["test_acc"]) == (at_once["test_loss"], at_once["test_acc"])


def test_the_first_rows_are_logged_more_often_if_configured(make_config):
    """Five rows `log_early` steps apart; the others are unchanged, so no part of a curve is coarser."""
    rows = run(make_config(log_early=2, log_every=8, max_steps=20, checkpoint_every=5)).folder.rows()
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 16, 20]
    assert run_name(make_config(log_early=None)) == run_name({**make_config(), "log_early": None})
    assert run_name(make_config(log_early=2)) != run_name(make_config())


def test_rows_use_a_fixed_part_of_the_validation_images_if_limited(make_config, monkeypatch):
    """The limit takes the first images; a limit of all images gives the unlimited run."""
    looked_at, original = [], Trainer.evaluate

    def evaluate(self, split, limit=None):
        looked_at.append((split is self.data.val, limit))
        return original(self, split, limit)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    run(make_config(eval_val_limit=100, evaluate_test=False))
    assert {limit for is_validation, limit in looked_at if is_validation} == {100}
    assert {limit for is_validation, limit in looked_at if not is_validation} == {200}
    assert run_name(make_config(eval_val_limit=None)) == run_name(make_config())


def test_evaluating_more_often_changes_no_result(make_config):
    often = run(make_config(log_early=1)).folder.rows()
    assert {row["step"]: row["val_loss"] for row in run(make_config()).folder.rows()}.items() <= {
        row["step"]: row["val_loss"] for row in often
    }.items()
