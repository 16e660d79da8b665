"""A sweep's runs in several processes of this machine; a crash affects only its own run."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from sibp.experiment.signals import stop_on_signals
from sibp.runs.errors import UserError
from sibp.runs.folder import RunFolder, resuming
from sibp.runs.outcome import Outcome
from sibp.runs.output import forgiving_output

SECONDS_BETWEEN_LOOKS = 0.3  # looks for signals, and updates progress
Job = Mapping[str, Any]  # the resolved config of a run
PRELOADED = ["sibp.experiment.runner"]  # for a fast start of the process


def count_of(n_jobs: Any) -> int:
    """The number of concurrent runs that ``n_jobs`` means.

    Args:
        n_jobs: 1 or more; -1: one per core, -2: one less, and so on.

    Returns:
        1 or more.

    Raises:
        UserError: it is not such a number.
    """
    if type(n_jobs) is not int or n_jobs == 0:
        raise UserError(f"hydra.launcher.n_jobs={n_jobs} is not possible: give 1 or more, or -1 for one per core.")
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)


def train_in_processes(
    jobs: Sequence[Job],
    at_once: int,
    tell: Callable[[Outcome], None],
    look: Callable[[Sequence[Job]], None],
) -> None:
    """Train every job in a separate process.

    Processes end with a checkpoint when this one is asked to stop, and when it dies.

    Args:
        jobs: one resolved config per run.
        at_once: number of concurrent runs.
        tell: called with each run's outcome as it ends, even if its process died.
        look: called at intervals with the running jobs.

    Raises:
        KeyboardInterrupt: this process was asked to stop.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting, running = list(jobs), {}
    with stop_on_signals() as stop:
        try:
            while running or (waiting and not stop.made):
                while waiting and len(running) < at_once and not stop.made:
                    job = waiting.pop(0)
                    running[_start(context, job, at_once)] = job
                wait([end for process in running for end in (process.sentinel, process.answers)], SECONDS_BETWEEN_LOOKS)
                for process in [process for process in running if process.answers.poll() or not process.is_alive()]:
                    tell(_outcome_of(process, running.pop(process)))
                if stop.made:
                    _request_stop(running)
                look(list(running.values()))
        finally:
            for process in running:
                process.kill()
    if stop.made:
        raise KeyboardInterrupt


def _start(context: Any, job: Job, at_once: int) -> Any:
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(dict(job), at_once, sender), daemon=True)
    process.start()
    sender.close()
    process.answers, process.asked_to_stop = answers, False
    return process


def _request_stop(running: Mapping[Any, Any]) -> None:
    for process in running:
        if not process.asked_to_stop:
            process.asked_to_stop = True
            process.terminate()


def _outcome_of(process: Any, job: Job) -> Outcome:
    folder = RunFolder(job)
    with suppress(EOFError, OSError):
        answer = process.answers.recv()
        process.join()
        return Outcome(folder=folder, **answer)
    process.join()
    code = process.exitcode
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    if process.asked_to_stop:
        return Outcome("interrupted", f"stopped: {resuming(job)} resumes from its last checkpoint", folder)
    return Outcome("failed", f"its process died ({how}; often out of memory): the same command tries again", folder)


def _work(job: dict[str, Any], at_once: int, sender: Connection) -> None:
    """What a process does."""
    os.setpgid(0, 0)  # Ctrl-C goes to its parent, which asks it to stop
    stop_with_parent(multiprocessing.parent_process())
    import torch

    from sibp.experiment.runner import run

    if job.get("threads") is None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // at_once))
    with forgiving_output():
        try:
            outcome = run({**job, "progress": False})
        except KeyboardInterrupt:
            os._exit(1)
    with suppress(OSError):  # the parent may have ended
        sender.send(answer_of(outcome))


def answer_of(outcome: Outcome) -> dict[str, Any]:
    """An outcome in plain values, for another process.

    Args:
        outcome: how a run ended.

    Returns:
        All of it but the folder, which the other process knows.
    """
    return {name: getattr(outcome, name) for name in ("status", "message", "wrong_input", "kept")}


def stop_with_parent(parent: Any) -> None:
    """Ask this process to stop when another dies.

    Args:
        parent: the other one, with a ``sentinel`` to wait for; None: there is none.
    """
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def ending_with(process_id: int) -> Iterator[None]:
    """Ask this process to stop once another of this machine has died.

    Args:
        process_id: of the other.

    Yields:
        Nothing.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            try:
                os.kill(process_id, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
