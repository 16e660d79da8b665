"""TensorBoard's files, read back as TensorBoard reads them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from torch import nn

from sibp.experiment.board import Board
from sibp.experiment.loop import Trainer
from sibp.experiment.runner import run

TAGS = {"loss/train", "loss/val", "accuracy/train", "accuracy/val", "time/seconds_per_step"}
STEPS = [0, 4, 8, 12, 16, 20]
ROW = {"step": 0, "epoch": 0.0, "seconds": 0.0, "train_loss": 2.0, "train_acc": 0.5, "val_loss": 3.0, "val_acc": 0.25}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def steps(events: list[Any]) -> list[int]:
    return [event.step for event in events]


def content(events: EventAccumulator, tag: str) -> bytes:
    (event,) = events.Tensors(tag)
    return event.tensor_proto.string_val[0]


def settings_and_status(folder: Path) -> tuple[dict[str, Any], str | None]:
    """A run's row in the table of hyper-parameters; None for an unfinished run."""
    tags = read(folder).PluginTagToContent(metadata.PLUGIN_NAME)
    assert metadata.EXPERIMENT_TAG not in tags  # or one run's columns would be those of all
    values = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG]).hparams
    settings = {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}
    end = tags.get(metadata.SESSION_END_INFO_TAG)
    return settings, end and Status.Name(metadata.parse_session_end_info_plugin_data(end).status)


def event_folders(folder: Path) -> set[Path]:
    return {file.parent for file in folder.rglob("events.out.tfevents.*")}


@pytest.fixture
def lights_out_at_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first run fail at step 13: step 12 is logged then, and the last checkpoint is that of step 10."""
    original, crashes = Trainer._train_step, [13]

    def train_step(self, indices):
        if self.step in crashes:
            crashes.clear()
            raise RuntimeError("the lights went out")
        return original(self, indices)

    monkeypatch.setattr(Trainer, "_train_step", train_step)


def test_curves_are_the_metrics_in_one_folder_per_run(make_config):
    folder = run(make_config("sibp", tensorboard=True)).folder
    found = curves(folder.board)
    rows = folder.rows()
    solver = {f"solver/{layer}/{key}" for layer, stats in rows[-1]["solver"].items() for key in stats}
    assert found.keys() >= TAGS | solver
    assert [step for step, _ in found["loss/val"]] == [row["step"] for row in rows]
    for (_, value), row in zip(found["accuracy/train"], rows, strict=True):
        assert abs(value - row["train_acc"]) < 1e-6
    assert all(value > 0 for _, value in found["time/seconds_per_step"])
    assert event_folders(folder.path) == {folder.board}


def test_time_is_training_time_on_the_relative_axis_and_in_separate_curves(make_config):
    folder = run(make_config(tensorboard=True)).folder
    events, rows = read(folder.board), folder.rows()
    by_step, by_time = events.Scalars("loss/val"), events.Scalars("over_training_ms/loss/val")
    for event, row in zip(by_step, rows, strict=True):
        assert event.wall_time - by_step[0].wall_time == pytest.approx(row["seconds"], abs=1e-5)
    assert [(e.step, e.value) for e in by_time] == [
        (round(1000 * row["seconds"]), pytest.approx(row["val_loss"])) for row in rows
    ]


def test_every_chart_of_the_layout_has_its_curves(make_config):
    events = read(run(make_config(tensorboard=True)).folder.board)
    layout = Layout.FromString(content(events, "custom_scalars__config__"))
    found = [
        [[tag for tag in events.Tags()["scalars"] if re.search(pattern, tag)] for pattern in chart.multiline.tag]
        for category in layout.category
        for chart in category.chart
    ]
    assert found == [
        [[f"{prefix}{quantity}/{part}"]]
        for prefix in ("", "over_training_ms/")
        for quantity in ("loss", "accuracy")
        for part in ("train", "val")
    ]


def test_the_table_has_the_settings_that_affect_a_result(make_config):
    settings, status = settings_and_status(run(make_config(tensorboard=True)).folder.board)
    assert status == "STATUS_SUCCESS"
    assert settings == {
        "dataset": "digits",
        "model": "mlp",
        "model.hidden": "[16]",
        "model.init": "default",
        "optimizer": "sgd",
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": False,
        "optimizer.weight_decay": 0.0,
        "batch_size": 50,
        "max_steps": 20,
        "seed": 0,
        "schedule": "constant",
        "decays": "lr",
        "warmup_steps": 0.0,
        "label_noise": 0.0,
        "log_every": 4,
        "eval_train_limit": 200,
        "target_val_acc": 0.5,
    }


def test_config_and_final_metrics_are_those_of_the_folder(make_config):
    folder = run(make_config(tensorboard=True, target_val_acc=0.2)).folder
    text = content(read(folder.board), "config/text_summary").decode()
    assert all(line.startswith("    ") for line in text.splitlines())  # a block of code in Markdown
    assert yaml.safe_load(text) == folder.config
    summary, found = folder.summary(), curves(folder.board)
    expected = {key: summary["final"][key] for key in ("train_loss", "val_loss", "val_acc", "seconds")}
    expected |= {key: summary[key] for key in ("test_loss", "test_acc", "steps_to_target")}
    assert {tag: points for tag, points in found.items() if tag.startswith("final/")} == {
        f"final/{key}": [(20, pytest.approx(value))] for key, value in expected.items()
    }


def test_test_metrics_requested_later_are_added(make_config):
    config = make_config(tensorboard=True, evaluate_test=False)
    assert "final/test_acc" not in curves(run(config).folder.board)
    folder = run({**config, "evaluate_test": True}).folder
    found = curves(folder.board)
    assert found["final/test_acc"] == [(20, pytest.approx(folder.summary()["test_acc"]))]
    assert [step for step, _ in found["loss/val"]] == STEPS


def test_a_diverged_run_is_marked_as_failed_with_its_reason(make_config):
    config = make_config(tensorboard=True)
    config["optimizer"]["lr"] = 1e30
    outcome = run(config)
    assert outcome.status == "diverged"
    assert settings_and_status(outcome.folder.board)[1] == "STATUS_FAILURE"
    assert content(read(outcome.folder.board), "ending/text_summary").decode() == f"diverged: {outcome.message}"


def test_non_numeric_metrics_are_omitted(tmp_path):
    broken = {
        **ROW,
        "step": 2,
        "seconds": 1.0,
        "train_loss": None,
        "solver": {"0": {"iterations": 3, "decrease": None}},
    }
    board = Board(tmp_path, {"seed": 0}, [ROW, broken])
    board.add_weights(nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.bias.fill_(torch.nan)), broken)
    board.finish({"status": "diverged", "reason": "so it is", "steps": 2, "final": broken})
    board.close()
    found = curves(tmp_path)
    assert [step for step, _ in found["loss/train"]] == [0]
    assert [step for step, _ in found["loss/val"]] == [0, 2]
    assert found["solver/0/iterations"] == [(2, 3.0)]
    assert "solver/0/decrease" not in found
    assert "final/train_loss" not in found
    assert read(tmp_path).Tags()["histograms"] == ["weights/weight"]


@pytest.mark.usefixtures("lights_out_at_13")
def test_a_resumed_run_has_every_point_once_even_in_a_tensorboard_left_open(make_config):
    config = make_config(tensorboard=True, histograms=True)
    outcome = run(config)
    assert outcome.status == "failed"
    board = outcome.folder.board
    left_open = read(board)
    assert steps(left_open.Scalars("loss/train")) == [0, 4, 8, 12]
    assert settings_and_status(board)[1] is None  # it may go on
    assert run(config).status == "completed"
    for events in (read(board), left_open.Reload()):
        assert steps(events.Scalars("loss/train")) == STEPS
        assert steps(events.Scalars("final/test_acc")) == [20]
        weights = events.Histograms("weights/0/weight")
        assert steps(weights) == STEPS
        assert all(event.histogram_value.num == 64 * 16 for event in weights)
    assert [row["step"] for row in outcome.folder.rows()] == STEPS
    assert event_folders(outcome.folder.path) == {board}


@pytest.mark.usefixtures("lights_out_at_13")
def test_a_truncated_event_file_loses_only_its_last_histograms(make_config):
    config = make_config(tensorboard=True, histograms=True)
    board = run(config).folder.board
    (file,) = (path for path in board.iterdir() if path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-100])
    assert run(config).status == "completed"
    assert [step for step, _ in curves(board)["loss/train"]] == STEPS
    assert steps(read(board).Histograms("weights/0/weight")) == STEPS  # step 12 was trained again


def test_rows_logged_after_the_checkpoint_are_dropped(tmp_path):
    board = Board(tmp_path, {"seed": 0}, [])
    for row in (ROW, {**ROW, "step": 2, "seconds": 1.0}):
        board.add(row)
        board.add_weights(nn.Linear(1, 1), row)
    board.close()
    Board(tmp_path, {"seed": 0}, [ROW]).close()
    events = read(tmp_path)
    assert steps(events.Scalars("loss/val")) == steps(events.Histograms("weights/weight")) == [0]


def test_histograms_are_off_by_default(make_config):
    assert read(run(make_config(tensorboard=True)).folder.board).Tags()["histograms"] == []


def test_a_forced_run_restarts_its_curves(make_config):
    config = make_config(tensorboard=True)
    run(config)
    folder = run({**config, "force": True}).folder
    assert [step for step, _ in curves(folder.board)["loss/val"]] == STEPS


def test_tensorboard_can_be_switched_off(make_config):
    assert not run(make_config(tensorboard=False)).folder.board.exists()


def test_histograms_without_a_board_are_refused(make_config):
    outcome = run(make_config(tensorboard=False, histograms=True))
    assert outcome.wrong_input
    assert outcome.message.startswith("histograms=true has no effect without tensorboard=true")
