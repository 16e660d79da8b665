"""A sweep's output in a terminal, and its state after Ctrl-C."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

WORDS = [
    "optimizer=sgd",
    "model.hidden=[8]",
    "epochs=null",
    "log_every=3",
    "tensorboard=false",
    "threads=1",
    "device=cpu",
]


def test_progress_bars_one_line_per_run_and_resuming_after_ctrl_c(tmp_path):
    outer, inner = os.openpty()  # 0 columns wide, as some terminals report
    terminal = os.ttyname(inner)
    program = [sys.executable, "-m", "sibp.train", "-m", *WORDS, "max_steps=6,1000000"]
    # The first terminal that a session leader opens becomes its controlling terminal, which delivers Ctrl-C.
    shell = ["sh", "-c", f'exec "$0" "$@" <{terminal} >{terminal} 2>&1']
    with subprocess.Popen([*shell, *program], start_new_session=True, cwd=tmp_path) as child:
        shown, pressed = os.read(outer, 1024), False
        os.close(inner)
        with contextlib.suppress(OSError):  # reading a closed terminal raises OSError
            while part := os.read(outer, 1024):
                shown += part
                if not pressed and re.search(rb"[1-9]\d*/1000000 .*loss=", shown):
                    pressed = bool(os.write(outer, b"\x03"))
    os.close(outer)
    assert child.returncode == 130
    bars = shown.decode()
    # name, percentage, steps, elapsed and remaining time, speed, metrics
    metrics = r" \[\d\d:\d\d<\d+:[\d:]+, +[\d.]+step/s, loss=\d\.\d{4}, val_acc=\d\."
    assert re.search(r"sgd s0: 100%\|.*\| 6/6" + metrics, bars)
    assert re.search(r"sgd s0: +0%\|.*/1000000" + metrics, bars)

    left = [line.split("\r")[-1].split("\x1b[A")[-1] for line in bars.replace("^C", "").split("\r\n")]
    completed, interrupted, way_on, tally = [line for line in left if line.strip()]
    assert "0/2 runs" in bars
    assert re.search("1/2 runs, (about |a few )", bars)
    assert completed.startswith("completed ")
    stopped = re.search(r"Stopped at step (\d+) of 1000000, all of it kept: the same command resumes", interrupted)
    assert stopped is not None
    assert way_on == "Interrupted: the same command resumes from here."
    assert tally == "2 runs: 1 completed, 0 diverged, 0 failed, 0 skipped, 1 interrupted"
    folder = tmp_path / Path(interrupted.split()[1].rstrip(":"))
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == int(stopped[1])
    assert not (folder / "summary.json").exists()
