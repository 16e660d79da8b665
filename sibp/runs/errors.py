"""The exception for errors that the user can fix, and the exit code of an interrupted command."""

INTERRUPTED = 130  # the exit code of a command ended by Ctrl-C


class UserError(Exception):
    """An error that only the user can fix; the message is one sentence that says how."""
