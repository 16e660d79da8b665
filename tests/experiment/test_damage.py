"""Damaged or misplaced files are named in one sentence; nothing kept is lost, and no code in them runs."""

import json
import math
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from disturbed import assert_same_end, crash, fail_at, without_seconds

from sibp.experiment import data
from sibp.experiment.checkpoint import load_checkpoint
from sibp.experiment.data import CIFAR_FILES, load_data
from sibp.experiment.loop import Trainer
from sibp.experiment.runner import run
from sibp.report.__main__ import main as report
from sibp.runs.errors import UserError
from sibp.runs.folder import AGAIN, RunFolder
from sibp.runs.state import state_of
from sibp.train import main

GRID = ["optimizer=sgd", "model.hidden=[8]", "max_steps=6", "log_every=3", "checkpoint_every=3", "threads=1"]


class Evil:
    """Creates a folder when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def half(make_config, monkeypatch) -> RunFolder:
    """A run that failed at step 13, after a checkpoint at 10."""
    fail_at(monkeypatch, 13, crash)
    return run(make_config(model={"name": "mlp", "hidden": [4], "init": "default", "init_std": None})).folder


def refused(folder: RunFolder, damaged: Path) -> None:
    """The run names the damaged file, and changes no file."""
    before = (damaged.read_bytes(), folder.checkpoint.read_bytes(), folder.metrics.read_bytes())
    outcome = run(folder.config)
    assert outcome.status == "failed"
    assert outcome.wrong_input
    assert len(outcome.message.splitlines()) == 1
    assert outcome.message.startswith(f"{damaged} ")
    assert "force=true trains the run again" in outcome.message
    assert (damaged.read_bytes(), folder.checkpoint.read_bytes(), folder.metrics.read_bytes()) == before


def test_a_truncated_checkpoint_is_refused(half):
    content = half.checkpoint.read_bytes()
    for length in (0, 1, 100, *range(500, len(content), 1000), len(content) - 1):
        half.checkpoint.write_bytes(content[:length])
        refused(half, half.checkpoint)


def test_a_wrong_byte_in_a_checkpoint_is_detected_or_harmless(half):
    content, good, noticed = half.checkpoint.read_bytes(), load_checkpoint(half), 0
    assert good is not None
    for place in random.Random(0).sample(range(len(content)), 300):
        wrong = bytearray(content)
        wrong[place] ^= 4
        half.checkpoint.write_bytes(wrong)
        try:
            state = load_checkpoint(half)
        except UserError:
            noticed += 1
        else:  # the byte lies in padding between the archive's members
            assert state is not None
            assert state.keys() == good.keys()
            assert str(state["optimizer"]) == str(good["optimizer"])
            assert all(torch.equal(state["model"][key], value) for key, value in good["model"].items())
    assert noticed > 100


def test_wrong_metrics_are_refused(half):
    content = half.metrics.read_bytes()
    kept = content.index(b"\n", content.index(b'"step": 8')) + 1
    for place in (0, 9, kept // 2, kept - 1):
        half.metrics.write_bytes(content[:place] + b"7" + content[place + 1 :])
        refused(half, half.metrics)
        half.metrics.write_bytes(content[:place])
        refused(half, half.metrics)
    half.metrics.write_bytes(content[:kept] + b"\xff\x00{")
    assert run(half.config).status == "completed"


def test_a_truncated_summary_is_rewritten(make_config, tmp_path):
    config = make_config()
    folder, whole = run(config).folder, run({**config, "run_root": str(tmp_path / "whole")}).folder
    for text in (b"", b'{"status": "completed", "rea', b"[]", b"\xff"):
        (folder.path / "summary.json").write_bytes(text)
        assert run(config).status == "completed"
        assert_same_end(folder, whole)


@pytest.mark.parametrize("part", ['"final": {}', '"seconds": {}', '"final": {"train_loss": null}'])
def test_a_summary_that_lost_its_numbers_is_rewritten(make_config, part):
    config = make_config()
    folder = run(config).folder
    text, good = (folder.path / "summary.json").read_text(), folder.summary()
    (folder.path / "summary.json").write_text(json.dumps({**json.loads(text), **json.loads("{" + part + "}")}))
    assert state_of(config).status == "stopped"
    assert run(config).status == "completed"
    assert without_seconds(folder.summary()) == without_seconds(good)


@pytest.mark.parametrize("content", [None, b"", b"garbage", b'{"step": 0, "sec\n{}\n'])
def test_a_completed_run_without_its_rows_is_not_done(make_config, content):
    config = make_config()
    folder = run(config).folder
    summary = (folder.path / "summary.json").read_bytes()
    folder.metrics.unlink()
    if content is not None:
        folder.metrics.write_bytes(content)
    outcome = run(config)
    assert (outcome.status, outcome.wrong_input) == ("failed", True)
    assert outcome.message.startswith(f"The finished run in {folder.path} is damaged (")
    assert outcome.message.endswith(f"): {AGAIN}")
    assert (folder.path / "summary.json").read_bytes() == summary
    assert run({**config, "force": True}).status == "completed"


@pytest.mark.parametrize("content", [None, b"", b"- garbage: ["])
def test_a_lost_config_of_a_completed_run_is_rewritten(make_config, content):
    config = make_config()
    path = run(config).folder.path / "config.yaml"
    good = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    assert run(config).status == "skipped"
    assert path.read_bytes() == good


def test_a_run_with_no_finite_validation_loss_resumes(make_config, monkeypatch):
    """Its rows have null there."""
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: (1.0, None) if _[1] is _[0].data.train else (math.nan, None))
    fail_at(monkeypatch, 13, crash)
    config = make_config(target_val_acc=None)
    assert run(config).status == "failed"
    outcome = run(config)
    assert (outcome.status, "validation loss nan" in outcome.message) == ("completed", True)


def test_a_folder_among_the_event_files_is_named(make_config, monkeypatch):
    fail_at(monkeypatch, 13, crash)
    config = make_config(tensorboard=True)
    folder = run(config).folder
    obstacle = folder.board / "events.out.tfevents.1.1"
    obstacle.mkdir()
    assert run(config).message.startswith(f"{obstacle} cannot be read or written (Is a directory)")


def test_an_invalid_forced_run_keeps_the_completed_one(make_config):
    config = make_config()
    summary = run(config).folder.summary()
    outcome = run({**config, "force": True, "device": "tpu"})
    assert outcome.status == "failed"
    assert outcome.folder.summary() == summary
    assert run(config).status == "skipped"


def test_a_continuing_run_is_not_called_failed(half, monkeypatch):
    assert (half.summary() or {})["status"] == "failed"
    fail_at(monkeypatch, 15, lambda: os.kill(os.getpid(), 15))
    assert run(half.config).status == "interrupted"
    assert half.summary() is None


@pytest.fixture
def grid(tmp_path) -> list[str]:
    return [*GRID, f"run_root={tmp_path / 'runs'}"]


def test_a_sweep_retries_a_failed_job_but_not_a_diverged_one(grid, monkeypatch, capsys):
    words = [*grid, "-m", "optimizer.lr=0.1,1e30", "seed=0,1"]
    fail_at(monkeypatch, 4, crash, seed=1)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "4 runs: 1 completed, 2 diverged, 1 failed, 0 skipped"
    assert sorted(line.split()[0] for line in err.splitlines()) == ["1/4", "diverged", "diverged", "failed"]
    assert "RuntimeError: the lights went out" in err
    (root,) = [word.split("=")[1] for word in words if word.startswith("run_root")]
    folders = {path.name.rpartition("-")[0]: path for path in Path(root).glob("digits-*")}
    failed = folders["digits-mlp8-sgd-lr0.1-s1"] / "summary.json"
    assert '"reason": "RuntimeError: the lights went out"' in failed.read_text()
    assert "in crash" in failed.read_text()  # the traceback
    diverged = folders["digits-mlp8-sgd-lr1e_30-s0"] / "summary.json"
    assert '"reason": "the training loss became nan at step 2"' in diverged.read_text()

    as_it_was = diverged.stat().st_mtime_ns
    assert main(words) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs: 1 completed, 2 diverged, 0 failed, 1 skipped"
    assert '"completed"' in failed.read_text()
    assert diverged.stat().st_mtime_ns == as_it_was


@pytest.mark.parametrize("name", ["", "config.yaml", "metrics.jsonl", "checkpoint.pt", "summary.json", "tb", ".lock"])
def test_an_unusable_run_folder_is_named_and_other_runs_are_trained(grid, tmp_path, capfd, name):
    assert main([*grid, "seed=0"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    shutil.rmtree(folder)
    obstacle = folder / name
    if name in ("", "tb"):
        obstacle.parent.mkdir(exist_ok=True)
        obstacle.write_text("a file")
    else:
        (obstacle / "with a file").mkdir(parents=True)
    capfd.readouterr()
    assert main([*grid, "-m", "seed=0,1"]) == 1
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "2 runs: 1 completed, 0 diverged, 1 failed, 0 skipped"
    assert sum(line.startswith("failed ") and str(obstacle) in line for line in err.splitlines()) == 1
    assert "Traceback" not in err
    assert obstacle.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("obstacle", ["a pipe", "a device"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.pt", ".lock"])
def test_reading_an_endless_file_terminates(half, name, obstacle):
    path = half.path / name
    path.unlink()
    if obstacle == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    assert state_of(half.config).status == "failed"
    (half.path / "summary.json").unlink()
    assert state_of(half.config).status in ("not started", "stopped")
    outcome = run(half.config)
    assert (outcome.status, outcome.wrong_input) == ("failed", True)
    assert outcome.message == f"{path} is not a file, and a run needs one there: delete it."


@pytest.mark.timeout(60)
def test_an_endless_file_is_not_a_summary(half):
    (half.path / "summary.json").unlink()
    os.mkfifo(half.path / "summary.json")
    assert half.summary() is None
    assert state_of(half.config).status == "stopped"
    assert run(half.config).status == "completed"
    assert half.is_finished()


def test_a_multi_line_message_is_one_line_of_the_sweep(grid, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("too many\n  lines\nto read")

    monkeypatch.setattr("sibp.experiment.runner.build_optimizer", fail)
    assert main([*grid, "-m", "seed=0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("RuntimeError: too many")


def test_code_in_a_checkpoint_or_a_config_is_not_executed(half, tmp_path, monkeypatch):
    marker = tmp_path / "code was run"
    pickle.loads(pickle.dumps(Evil(marker)))
    marker.rmdir()  # the trap works
    for content in (pickle.dumps(Evil(marker)), None):
        if content is None:
            torch.save({"metrics_bytes": 0, "model": Evil(marker)}, half.checkpoint)
        else:
            half.checkpoint.write_bytes(content)
        refused(half, half.checkpoint)
    (half.path / "config.yaml").write_text(f"dataset: !!python/object/apply:os.mkdir ['{marker}']\n")
    monkeypatch.chdir(tmp_path)
    report([str(half.path), "--out", str(tmp_path / "report.html")])
    assert run({**half.config, "force": True}).status == "completed"
    assert not marker.exists()


def test_a_pickled_data_set_is_opened_only_with_its_published_checksum(tmp_path):
    marker = tmp_path / "code was run"
    (tmp_path / "cifar-10-batches-py").mkdir()
    for file in CIFAR_FILES:
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(UserError, match="cannot be read"):
        load_data({"name": "cifar10"}, str(tmp_path), download=False)
    assert not marker.exists()


def write_idx(folder: Path, part: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One part of an image set in MNIST's format: a magic number, sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.numpy().tobytes())
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + labels.numpy().tobytes())


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """Well-formed files of the right size, for a test to change; the MD5 sums match no file."""
    monkeypatch.setattr(data, "FASHION_MNIST_MD5", {})

    def load(side: int = 28, label: int = 0, pixel: int = 1, count: int = 60000) -> data.Data:
        for part, number in (("train", count), ("t10k", 10000)):
            images = torch.zeros(number, side, side, dtype=torch.uint8)
            images[0, 0, 0] = pixel
            labels = torch.full((number,), label, dtype=torch.uint8)
            write_idx(tmp_path / "FashionMNIST" / "raw", part, images, labels)
        return load_data({"name": "fashion_mnist"}, str(tmp_path), download=False)

    return load


def test_only_verified_files_are_read(fashion, tmp_path):
    processed = tmp_path / "FashionMNIST" / "processed"
    processed.mkdir(parents=True)
    for name, count in (("training.pt", 60000), ("test.pt", 10000)):  # as torchvision kept them before 0.9
        torch.save((torch.ones(count, 1, 1), torch.ones(count).long()), processed / name)
    loaded = fashion()
    assert loaded.shape == (1, 28, 28)
    assert not loaded.test.labels.any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"side": 32}, "its images are 1 x 32 x 32, not 1 x 28 x 28"),
        ({"label": 10}, "its labels are not all from 0 to 9"),
        ({"pixel": 0}, "all its pixels are the same"),
        ({"count": 59999}, "it does not hold 60000 images with a label each"),
    ],
)
def test_an_unexpected_image_set_is_refused(fashion, change, reason):
    with pytest.raises(UserError, match=f"cannot be read \\({reason}"):
        fashion(**change)


def test_files_of_different_image_sets_are_distinguished(tmp_path):
    """Every file of either set has its published sum."""
    assert data.MNIST_MD5.keys() == data.FASHION_MNIST_MD5.keys() == set(data.IDX_FILES)
    assert not set(data.MNIST_MD5.values()) & set(data.FASHION_MNIST_MD5.values())
    images, labels = torch.zeros(4, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    for part in ("train", "t10k"):
        write_idx(tmp_path / "FashionMNIST" / "raw", part, images, labels)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte cannot be read .* published MD5 sum"):
        load_data({"name": "fashion_mnist"}, str(tmp_path), download=False)
