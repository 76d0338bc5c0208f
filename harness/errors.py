"""What an error says, in one line."""


def first_line(error: BaseException) -> str:
    """The first line of the error's message, without the stop at its end; its class where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


def describe_error(error: BaseException) -> str:
    """The error's class and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
