"""What is for an operator to mend and not for a programmer: shown as words and not as a trace."""


class Expected(Exception):
    """What can happen to a service's surroundings; the message says all there is to say."""


def trace_of(error: BaseException) -> BaseException | None:
    """What a log shows of an error beside its message: nothing, if it can be expected."""
    return None if isinstance(error, Expected) else error


class CannotServe(Exception):
    """The message says what is in the way and what to do about it."""
