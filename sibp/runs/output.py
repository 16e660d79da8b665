"""Standard output and error that cannot be written must never end training."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Forgiving:
    """A stream in place of another: what that one cannot take is written with escapes, or not at all.

    Once writing has failed, because the reader went away, the disk is full or the terminal hung up, nothing more is
    written, and what Python still holds for the stream goes to the null device, as it would complain at its exit.

    Args:
        stream: the one to write to.
    """

    def __init__(self, stream: Any):
        self._stream, self._gone = stream, False

    def write(self, text: str) -> int:
        """Write a text, as far as that is possible.

        Args:
            text: any.

        Returns:
            Its length.
        """
        try:
            if not self._gone:
                self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Have everything written, as far as that is possible."""
        try:
            if not self._gone:
                self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        self._gone = True
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Put :class:`Forgiving` streams in place of the standard ones.

    Yields:
        Nothing.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Forgiving(stream) if stream is not None else None for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
