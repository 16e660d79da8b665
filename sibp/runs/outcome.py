"""How a run ended."""

from dataclasses import dataclass

from sibp.runs.folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """How a run ended: completed, diverged, failed, skipped, busy or interrupted, with a message.

    ``wrong_input``: the run failed for a reason that only the user can fix. ``kept``: the run had already ended, and
    nothing was done.
    """

    status: str
    message: str
    folder: RunFolder
    wrong_input: bool = False
    kept: bool = False
