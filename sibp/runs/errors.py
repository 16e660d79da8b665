"""The one exception that speaks to the person at the keyboard."""


class UserError(Exception):
    """Something only the user can fix; its message is one sentence that says how."""
