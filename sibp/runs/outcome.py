"""How a run ended, for whoever asked for it."""

from dataclasses import dataclass

from sibp.runs.folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """How a run ended: completed, diverged, failed, skipped, busy or interrupted, and a sentence about it.

    ``wrong_input`` says that a run failed for something that only the user can fix; ``kept`` that it had ended
    before, and nothing was done.
    """

    status: str
    message: str
    folder: RunFolder
    wrong_input: bool = False
    kept: bool = False
