"""TensorBoard's files, read back as TensorBoard reads them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sibp.experiment.loop import Trainer
from sibp.experiment.runner import run

TAGS = {"loss/train", "loss/val", "accuracy/train", "accuracy/val", "time/seconds_per_step"}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def event_folders(folder: Path) -> set[Path]:
    return {file.parent for file in folder.rglob("events.out.tfevents.*")}


def test_curves_are_the_metrics_in_one_folder_a_run(make_config):
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


def test_a_resumed_curve_has_every_step_once(make_config, monkeypatch):
    original, crashes = Trainer._train_step, [13]

    def train_step(self, indices):
        if self.step in crashes:
            crashes.clear()
            raise RuntimeError("the lights went out")
        return original(self, indices)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    config = make_config(tensorboard=True)
    assert run(config).status == "failed"
    assert run(config).status == "completed"  # from step 10; step 12 had been logged before the crash
    folder = run(config).folder
    steps = [step for step, _ in curves(folder.board)["loss/train"]]
    assert steps == [row["step"] for row in folder.rows()] == [0, 4, 8, 12, 16, 20]
    assert event_folders(folder.path) == {folder.board}


def test_a_forced_run_starts_its_curves_anew(make_config):
    config = make_config(tensorboard=True)
    run(config)
    folder = run({**config, "force": True}).folder
    assert [step for step, _ in curves(folder.board)["loss/val"]] == [0, 4, 8, 12, 16, 20]


def test_no_board_unless_asked(make_config):
    assert not run(make_config(tensorboard=False)).folder.board.exists()
