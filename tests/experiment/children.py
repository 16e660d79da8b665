"""Real processes that die, or find the disk full, at an instant a test chooses.

They are forked from one server that has imported torch once, so that each takes a fraction of a second.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sibp.experiment.loop import Trainer
from sibp.experiment.runner import run
from sibp.train import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sibp.train", "torch._dynamo", "sklearn.datasets"])  # what a run would import
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
"""What Python's audit hooks call the changes of a disk, beside opening a file to write."""


def start(work: Callable[..., Any], *args: Any) -> Any:
    """Start a child; the caller must join it."""
    process = SERVER.Process(target=work, args=args)
    process.start()
    return process


def exit_code(work: Callable[..., Any], *args: Any) -> int:
    """Run something in a child; a negative code is the signal that ended it."""
    process = start(work, *args)
    process.join()
    return process.exitcode


def die_at_change(config: dict[str, Any], number: int) -> None:
    """Train, but die by SIGKILL just before this change of the disk (1: the first); fsync counts as one."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and str(args[0]).startswith(config["run_root"]) and set(args[1] or "w") & set("wa+")
        if opened or event in CHANGES:
            count()

    fsync = os.fsync
    os.fsync = lambda fd: (count(), fsync(fd))[1]
    sys.addaudithook(hook)
    run(config)


def write_no_file_beyond(size: int, config: dict[str, Any], answer: Connection | None) -> None:
    """Train where no file can grow beyond a size in bytes.

    With a connection to answer through, writing more is an error, as on a full disk; without, the system kills the
    process in the midst of writing.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    if answer is None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    outcome = run(config)
    if answer is not None:
        answer.send((outcome.status, outcome.message))


def sweep(words: list[str], output: Path, started: Path, barrier: Any) -> None:
    """Run a command line once all are ready, note every run that is trained, and exit with its code."""
    fit = Trainer.fit

    def noting_fit(self: Trainer, another: Any) -> None:
        with started.open("a") as file:
            file.write(self.folder.path.name + "\n")
        fit(self, another)

    Trainer.fit = noting_fit
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), sys.stdout.fileno())
    if barrier is not None:
        barrier.wait()
    sys.exit(main(words))
