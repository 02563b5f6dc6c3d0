"""Why a service cannot run: for an operator to mend, so shown as words and not as a trace."""


class CannotServe(Exception):
    """The message says what is in the way and what to do about it."""
