"""Ctrl-C, SIGTERM and SIGHUP as requests to stop after the current step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from sibp.runs.errors import INTERRUPTED


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def ends_quietly(message: str = "Interrupted before anything was trained.") -> Iterator[None]:
    """While a command starts, end it on Ctrl-C with a one-line message instead of a traceback.

    Args:
        message: the line.

    Yields:
        Nothing.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())
        os._exit(INTERRUPTED)  # an interrupted import raises another exception

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request; a second one stops immediately.

    If SIGHUP is ignored, as under nohup, it stays ignored.

    Yields:
        The request, to be checked after every step.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals only to the main thread
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
