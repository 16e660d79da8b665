"""The progress of a sweep as shown on a terminal: runs done, time left, and the state of running ones."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from sibp.runs.outcome import Outcome
from sibp.runs.state import State, duration, progress_of, state_of

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal
SECONDS_BETWEEN_LOOKS = 1.0
MOST_LINES = 12  # in the table of jobs


class Progress:
    """Counts a sweep's runs and shows its progress: continuously on a terminal, otherwise in occasional lines.

    Args:
        total: number of runs; None if unknown.
        shown: whether to show anything while the sweep is running.
    """

    def __init__(self, total: int | None, shown: bool = True):
        self.total, self.count = total, Counter[str]()
        self._started = time.monotonic()
        self._trained = 0
        self._line_at, self._look_at = -SECONDS_BETWEEN_LINES, 0.0
        self._terminal = shown and sys.stderr is not None and sys.stderr.isatty()
        self._shown = shown and total != 1
        self._table: list[tqdm] = []

    def line(self) -> str:
        """The progress of the sweep in one line.

        Returns:
            Such as ``7/25 runs, 2 diverged, about 12 min left``.
        """
        ended = self.count.total()
        parts = [f"{ended}/{self.total} runs" if self.total is not None else f"{ended} runs"]
        parts += [f"{self.count[s]} {s}" for s in ("diverged", "failed", "busy") if self.count[s]]
        if self._trained and self.total is not None and ended < self.total:
            each = (time.monotonic() - self._started) / self._trained
            left = round(each * (self.total - ended))
            parts.append(f"about {duration(left)} left" if left >= 10 else "a few seconds left")
        return ", ".join(parts)

    def ended(self, outcome: Outcome, line: str, good: bool) -> None:
        """Count a run that has ended, and print its line.

        Args:
            outcome: how it ended.
            line: what to print about it.
            good: whether to print to the standard output; otherwise to the standard error.
        """
        self.count[outcome.status] += 1
        self._trained += not outcome.kept and outcome.status in ("completed", "diverged", "failed")
        stream = sys.stdout if good else sys.stderr
        if self._table:
            with tqdm.external_write_mode(file=stream):
                print(line, file=stream, flush=True)
        else:
            print(line, file=stream, flush=True)
        self._print_occasionally()

    def look(self, running: Sequence[Mapping[str, Any]]) -> None:
        """Show the states of runs that are trained in other processes.

        Args:
            running: their configs.
        """
        if not self._shown or time.monotonic() < self._look_at + SECONDS_BETWEEN_LOOKS:
            return
        self._look_at = time.monotonic()
        if self._terminal:
            self._draw([state_of(config) for config in running[:MOST_LINES]])
        else:
            self._print_occasionally()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Show the sweep's progress below the progress bar of a run in this process.

        Yields:
            Nothing.
        """
        if not (self._terminal and self._shown):
            yield
            return
        bar = _text_bar(self.line(), 1)
        try:
            yield
        finally:
            bar.close()

    def close(self) -> None:
        """Remove the table from the terminal."""
        for bar in self._table:
            bar.close()
        self._table = []

    def _print_occasionally(self) -> None:
        ended = self.count.total()
        if self._terminal or not self._shown or ended == 0 or ended == self.total:
            return
        if time.monotonic() >= self._line_at + SECONDS_BETWEEN_LINES:
            self._line_at = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def _draw(self, states: Sequence[State]) -> None:
        lines = [self.line(), *(f"  {state.label}  {progress_of(state)}" for state in states)]
        while len(self._table) > len(lines):
            self._table.pop().close()
        while len(self._table) < len(lines):
            self._table.append(_text_bar("", len(self._table)))
        for bar, line in zip(self._table, lines, strict=True):
            bar.set_description_str(line)


def _text_bar(text: str, position: int) -> tqdm:
    """A line at the bottom of the terminal."""
    columns, rows = shutil.get_terminal_size((100, 24))
    return tqdm(total=0, desc=text, bar_format="{desc}", position=position, leave=False, ncols=columns, nrows=rows)
