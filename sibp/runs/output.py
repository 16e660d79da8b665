"""Standard streams whose failures do not stop training."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Forgiving:
    """A stream wrapper that escapes or drops what the wrapped stream cannot write.

    After a failed write (a closed reader, a full disk, a hung-up terminal) nothing more is written, and output that
    Python has buffered goes to the null device, since flushing it at exit would raise.

    Args:
        stream: the wrapped stream.
    """

    def __init__(self, stream: Any):
        self._stream, self._gone = stream, False

    def write(self, text: str) -> int:
        """Write text if possible; returns its length."""
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
        """Flush if possible."""
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
    """Replace the standard streams by `Forgiving` ones.

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
