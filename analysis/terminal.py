"""Run a script so that it prints on any terminal, and into a pipe that may be closed."""

import os
import sys
from collections.abc import Callable

PIPE_CLOSED = 128 + 13  # what a shell reports of a program that SIGPIPE ended


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit with the code that it returns, if that is not 0.

    Letters that the terminal does not have are printed as \\u escapes. Where the reader of the output is gone, such as
    `head` after its lines, the program ends quietly with PIPE_CLOSED.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the stream once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    if code:
        sys.exit(code)
