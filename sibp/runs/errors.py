"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error that only the user can fix; the message is one sentence that says how."""
